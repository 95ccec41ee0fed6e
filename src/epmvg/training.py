"""The training loop: a student learns boxes, and a teacher's vectors where there is one.

The folder it leaves is enough for everything that follows: config.yaml, model.yaml, model.safetensors (best on val),
tokenizer/, metrics.jsonl, predictions, and state/ for --resume.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import accelerate
import torch
from torch import Tensor, nn

from epmvg.config import ModelSettings, Recipe, TrainSettings
from epmvg.data.catalog import cache_folder, open_records
from epmvg.data.jsonl import Skipped
from epmvg.data.loader import GroundingLoader
from epmvg.data.photos import open_image
from epmvg.data.transforms import Augment, pad_of, render, swap_sides
from epmvg.data.views import evaluation_view
from epmvg.distill.cache import CachedTeacher
from epmvg.distill.losses import GroundingLoss, Loss
from epmvg.distill.teacher import ClipTeacher, View
from epmvg.evaluation import evaluation_loader, predict_rows, summarise, write_rows
from epmvg.hardware import use_bf16
from epmvg.models.factory import create_model, save, start_from, write_text
from epmvg.models.grounder import Grounder
from epmvg.models.memory import TextMemory
from epmvg.store import stored_maps
from epmvg.types import Batch, Embeddings, InputError, Progress, Record

Report = Callable[[dict[str, Any]], None]
"""Called with each row of metrics.jsonl as it is written."""


@dataclass(slots=True)
class Position:
    """How far a run has come: all that `--resume` needs beside tensors."""

    step: int = 0
    phrases: int = 0
    seconds: float = 0.0
    best: float = -1.0


@dataclass(slots=True)
class Run:
    """What the loop works on."""

    recipe: Recipe
    folder: Path
    student: Grounder
    teacher: ClipTeacher | CachedTeacher | None
    loss_of: GroundingLoss
    loader: GroundingLoader
    val: GroundingLoader
    optimizer: torch.optim.Optimizer
    accelerator: accelerate.Accelerator
    network: nn.Module  # the student as Accelerate wrapped it
    report: Report
    text_memory: TextMemory | None
    board: Any = None  # a TensorBoard writer, if the recipe wants one
    position: Position = field(default_factory=Position)


def train(recipe: Recipe, out: Path | str, *, resume: bool = False, report: Report | None = None) -> Path:
    """Train a student by a recipe and return its folder.

    Args:
        recipe: what to train, on what and how.
        out: the run's folder; it must not hold another run.
        resume: go on from the last saved step of `out`, with the same data in the same order.
        report: called with each row of metrics as it is written.

    Raises:
        InputError: unusable settings, data or folder.
    """
    folder = Path(out)
    settings = recipe.train
    accelerator = accelerate.Accelerator(
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),  # else several processes stay alone
        mixed_precision="bf16" if use_bf16(settings.precision) else "no",
        gradient_accumulation_steps=settings.accumulate,
    )
    if accelerator.is_main_process:
        _claim(folder, recipe, resume)
    accelerator.wait_for_everyone()
    tell = report if report is not None and accelerator.is_main_process else _say_nothing
    try:
        run = _prepare(recipe, folder, accelerator, tell)
    except InputError:
        if not resume and accelerator.is_main_process:  # leave no folder behind that would refuse the next try
            (folder / "config.yaml").unlink()
            folder.rmdir()
        raise
    if resume:
        _restore(run)
    _fit(run)
    return folder


def _say_nothing(row: dict[str, Any]) -> None:
    pass


def _claim(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Make sure the folder is ours to write."""
    config = folder / "config.yaml"
    if resume:
        if not config.exists():
            raise InputError(f"{folder} holds no run to resume: leave out --resume to start one.")
        if config.read_text(encoding="utf-8") != recipe.dump():
            raise InputError(f"{folder} was started with other settings: resume with the same recipe and overrides.")
        return
    if config.exists() or (folder.exists() and any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: choose another --out, or go on with that run by --resume.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(config, recipe.dump())


def _prepare(recipe: Recipe, folder: Path, accelerator: accelerate.Accelerator, report: Report) -> Run:
    settings = recipe.train
    accelerate.utils.set_seed(settings.seed, device_specific=True)
    student = _student(recipe.model)
    clip = open_teacher(recipe)
    loader, val = _loaders(recipe, student, accelerator, report)
    optimizer = torch.optim.AdamW(parameter_groups(student, settings, clip), weight_decay=settings.weight_decay)
    network = accelerator.prepare_model(student)
    teacher: ClipTeacher | CachedTeacher | None = clip
    if clip is not None:
        clip.to(accelerator.device)
        if clip.frozen:
            teacher = CachedTeacher(clip, cache_folder() / "answers")
    return Run(
        recipe=recipe,
        folder=folder,
        student=student,
        teacher=teacher,
        loss_of=_loss(recipe),
        loader=loader,
        val=val,
        optimizer=accelerator.prepare_optimizer(optimizer),
        accelerator=accelerator,
        network=network,
        report=report,
        text_memory=TextMemory(student.linguistic) if student.linguistic.frozen else None,
        board=_board(folder) if settings.tensorboard and accelerator.is_main_process else None,
    )


def _student(settings: ModelSettings) -> Grounder:
    if settings.start is None:
        return create_model(settings.preset, settings.pretrained, **settings.set)
    student = create_model(settings.preset, **settings.set)
    start_from(student, settings.start)
    return student


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("train.tensorboard=true needs TensorBoard: pip install 'epmvg[tensorboard]'.") from error
    return SummaryWriter(str(folder / "tensorboard"))


def open_teacher(recipe: Recipe) -> ClipTeacher | None:
    """Open the teacher of a recipe."""
    distill = recipe.distill
    if distill is None:
        return None
    if recipe.train.store and distill.view != "photo":
        raise InputError("train.store=true opens no pictures: set distill.view=photo.")
    if distill.view == "photo" and not distill.frozen:
        raise InputError("A teacher that trains sees what the student sees: set distill.view=canvas.")
    view: View = "content" if distill.view == "content" else "canvas"
    return ClipTeacher(distill.teacher, distill.pretrained, frozen=distill.frozen, view=view)


def cache_teacher(recipe: Recipe, progress: Progress | None = None) -> dict[str, Any]:
    """Ask the recipe's frozen teacher beforehand all that a training with `distill.view=photo` will ask.

    Phrases are asked in both spellings where a flip would swap their sides. What was answered before is kept, so a pass
    that was cut off goes on where it was.

    Returns:
        answers and megabytes of the file, seconds of the pass, and the file's path.

    Raises:
        InputError: the recipe has no frozen teacher, or its data cannot be read.
    """
    teacher = open_teacher(recipe)
    if teacher is None or not teacher.frozen:
        raise InputError("There is no frozen teacher in this recipe: give distill=NAME or distill=FOLDER.")
    data, skipped = recipe.data, Skipped()
    records = open_records(data.name, split=data.train, root=data.root, split_key=data.split_key, skipped=skipped)
    records = _with_photo(records, skipped)
    flips = data.augment is not None and data.augment.flip > 0
    phrases = [spelling for r in records for spelling in ((r.phrase, swap_sides(r.phrase)) if flips else (r.phrase,))]
    cached = CachedTeacher(teacher, cache_folder() / "answers")
    built = cached.fill(phrases, [r.image for r in records], photo_view(teacher.side), progress)
    return built | {"file": str(cached.answers.path)}


def _loss(recipe: Recipe) -> GroundingLoss:
    weights = recipe.loss.model_dump()
    if recipe.distill is not None:
        weights |= {"image": recipe.distill.image, "text": recipe.distill.text, "distance": recipe.distill.distance}
    return GroundingLoss(**weights)


def _loaders(
    recipe: Recipe, student: Grounder, accelerator: accelerate.Accelerator, report: Report
) -> tuple[GroundingLoader, GroundingLoader]:
    """Make the training loader and the validation loader, with stored answers where the recipe wants them."""
    data, settings = recipe.data, recipe.train
    skipped = Skipped()
    records = open_records(data.name, split=data.train, root=data.root, split_key=data.split_key, skipped=skipped)
    records = _with_photo(records, skipped)
    if skipped.counts:
        report({"event": "skipped", "rows": sum(skipped.counts.values()), "why": str(skipped)})
    val = open_records(data.name, split=data.val, root=data.root, split_key=data.split_key)
    if settings.evaluate_limit:
        val = val[: settings.evaluate_limit]
    canvas = data.canvas or student.canvas
    if canvas != student.canvas and (settings.store or not student.sine):
        raise InputError(f"data.canvas={canvas} needs model.position=sine and train.store=false.")
    stored: dict[str, Tensor] = {}
    stored_val: dict[str, Tensor] = {}
    if settings.store:
        if data.augment is not None or not student.visual.frozen:
            raise InputError("train.store=true needs data.augment=null and a wholly frozen backbone (model.visual).")
        folder = cache_folder() / "maps"
        stored = {"maps": stored_maps(student, records, folder, settings.store_gb, report)}
        stored_val = {"maps": stored_maps(student, val, folder, settings.store_gb, report)}
    loader = GroundingLoader(
        records,
        student.tokenize,
        canvas=canvas,
        images=data.images,
        phrases=data.phrases,
        augment=Augment(**data.augment.model_dump()) if data.augment else None,
        shuffle=True,
        seed=settings.seed,
        workers=data.workers,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        tolerant=True,
        stored=stored,
        cache_gb=data.cache_gb,
    )
    return loader, evaluation_loader(student, val, images=data.images, stored=stored_val)


def _with_photo(records: list[Record], skipped: Skipped) -> list[Record]:
    """Leave out rows whose photo is not there."""
    there = {image: image.is_file() for image in {record.image for record in records}}
    for record in records:
        if not there[record.image]:
            skipped.add("the image is missing", str(record.image))
    kept = [record for record in records if there[record.image]]
    if not kept:
        raise InputError(f"None of the {len(there)} images exists (first: {records[0].image}): check data.root.")
    return kept


def parameter_groups(
    student: Grounder, settings: TrainSettings, teacher: ClipTeacher | None = None
) -> list[dict[str, Any]]:
    """Split what trains into groups with learning rates of their own (sec. 4.2), by module.

    An unfrozen teacher trains along with the student at its own rate (Table 4).
    """
    trained = student.visual.trained()
    backbone, encoder = ([p for m in trained[name] for p in m.parameters()] for name in ("backbone", "encoder"))
    text = list(student.linguistic.parameters())
    named = {id(p) for p in (*backbone, *encoder, *text)}
    rest = [p for p in student.parameters() if id(p) not in named]
    groups: list[dict[str, Any]] = [
        {"name": "backbone", "params": backbone, "lr": settings.lr_visual},
        {"name": "encoder", "params": encoder, "lr": settings.lr_encoder},
        {"name": "text", "params": text, "lr": settings.lr_text},
        {"name": "rest", "params": rest, "lr": settings.lr},
    ]
    if teacher is not None and not teacher.frozen:
        groups.append({"name": "teacher", "params": list(teacher.parameters()), "lr": settings.lr_teacher})
    for group in groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
        group["peak_lr"] = group["lr"]
    return [group for group in groups if group["params"]]


def lr_factor(step: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """Return the share of the peak learning rate at an optimiser step."""
    total = max(1, round(settings.epochs * steps_per_epoch))
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.schedule == "cosine":
        done = (step - settings.warmup) / max(1, total - settings.warmup)
        return max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    return float(0.1 ** math.floor(step / steps_per_epoch / settings.drop))


def _steps_per_epoch(loader: GroundingLoader, settings: TrainSettings) -> int:
    return max(1, len(loader) // settings.accumulate)


def _batches(run: Run) -> Iterator[Batch]:
    """Yield the run's batches from where it stands to its end."""
    per_epoch = len(run.loader)
    total = round(run.recipe.train.epochs * per_epoch)
    done = run.position.step * run.recipe.train.accumulate
    while done < total:
        epoch, start = divmod(done, per_epoch)
        for batch in run.loader.batches(epoch, start):
            yield batch
            done += 1
            if done >= total:
                return


def _fit(run: Run) -> None:
    settings = run.recipe.train
    steps = _steps_per_epoch(run.loader, settings)
    every = max(1, round(settings.evaluate_every * steps))
    since = time.monotonic() - run.position.seconds
    meter = _Meter()
    for batch in _batches(run):
        with run.accelerator.accumulate(run.network):
            loss = _step(run, batch.to(run.accelerator.device))
        meter.add(loss, batch)
        run.position.phrases += len(batch.records) * run.accelerator.num_processes
        if not run.accelerator.sync_gradients:
            continue
        run.position.step += 1
        run.position.seconds = time.monotonic() - since
        if run.position.step % settings.log_every == 0:
            row = meter.take(run.accelerator.num_processes)
            _write(run, {"event": "step", "lr": _lr(run)} | row)
        if run.position.step % every == 0:
            _validate(run)
            since = time.monotonic() - run.position.seconds  # the clock counts learning, not scoring
            meter = _Meter()
        if run.position.step % settings.save_every == 0:
            _save_state(run)
    if run.position.step % every != 0:
        _validate(run)
    _save_state(run)


def _step(run: Run, batch: Batch) -> Loss:
    """Learn from one batch; return its loss."""
    run.network.train()
    factor = lr_factor(run.position.step, _steps_per_epoch(run.loader, run.recipe.train), run.recipe.train)
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    with run.accelerator.autocast():
        states = None
        if run.text_memory is not None:
            with torch.no_grad():
                states = run.text_memory(batch.tokens, batch.token_pad)
        output = run.network(*batch.inputs, features=batch.stored.get("maps"), states=states)
        teacher = None if run.teacher is None else _ask(run, run.teacher, batch)
    loss = run.loss_of(output, batch.box, teacher)
    total = loss.total
    if not torch.isfinite(total):
        images = ", ".join(sorted({record.image.name for record in batch.records})[:3])
        raise InputError(
            f"The loss became {total.item()} at step {run.position.step + 1} (images {images}, ...): "
            "lower train.lr or set train.clip=1."
        )
    run.accelerator.backward(total)
    if run.accelerator.sync_gradients and run.recipe.train.clip:
        run.accelerator.clip_grad_norm_(run.network.parameters(), run.recipe.train.clip)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return loss


def _ask(run: Run, teacher: ClipTeacher | CachedTeacher, batch: Batch) -> Embeddings:
    """Ask the teacher about a batch; what a frozen one has answered before comes from its file."""
    if isinstance(teacher, ClipTeacher):
        return cast(Embeddings, teacher(batch.image, batch.phrase, batch.pad))
    assert run.recipe.distill is not None
    if run.recipe.distill.view == "photo":
        return Embeddings(
            teacher.photos(photos_of(batch), photo_view(teacher.teacher.side)), teacher.text(batch.phrase)
        )
    if run.recipe.data.augment is None:
        return teacher(batch.image, batch.phrase, batch.pad)
    return Embeddings(teacher.teacher.image(batch.image, batch.pad), teacher.text(batch.phrase))  # views never return


def photos_of(batch: Batch) -> list[Path]:
    """Return the photo of each image of a batch, [I]."""
    owned = dict(zip(batch.owner.tolist(), batch.records, strict=True))
    return [owned[i].image for i in range(len(batch.letterbox))]


def photo_view(side: int) -> Callable[[Path], tuple[Tensor, Tensor]]:
    """Return what opens a photo as the evaluation view on a canvas of `side` pixels."""

    def view_of(path: Path) -> tuple[Tensor, Tensor]:
        photo = open_image(path)
        view = evaluation_view(photo.size, side)
        return render(photo, view), pad_of(view)

    return view_of


def _lr(run: Run) -> float:
    """The learning rate of what is not pretrained."""
    return next(float(group["lr"]) for group in run.optimizer.param_groups if group["name"] == "rest")


class _Meter:
    """Running means since the last row of metrics."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.start = time.monotonic()
        self.batches = self.images = self.phrases = 0
        self.terms: dict[str, float] = {}

    def add(self, loss: Loss, batch: Batch) -> None:
        self.batches += 1
        self.images += len(batch.letterbox)
        self.phrases += len(batch.records)
        for name, term in [*loss.terms.items(), ("total", loss.total)]:
            self.terms[name] = self.terms.get(name, 0.0) + term.item()

    def take(self, processes: int) -> dict[str, Any]:
        """Return the means and rates since the last time; the rates of this process times the number of processes."""
        seconds = time.monotonic() - self.start
        row = {
            "loss": {name: round(value / self.batches, 5) for name, value in self.terms.items()},
            "images_per_s": round(self.images * processes / seconds, 2),
            "phrases_per_s": round(self.phrases * processes / seconds, 2),
        }
        self.clear()
        return row


def _validate(run: Run) -> None:
    """Score on val, and keep the weights if they are the best so far."""
    if not run.accelerator.is_main_process:
        run.accelerator.wait_for_everyone()
        return
    settings = run.recipe.train
    rows = predict_rows(run.student, run.val.batches(0), autocast=use_bf16(settings.precision))
    scores = summarise(rows)
    name, split = Path(run.recipe.data.name).stem, run.recipe.data.val
    _write(run, {"event": "evaluate", "data": name, "split": split} | asdict(scores))
    if scores.acc50 >= run.position.best:  # of equals the later, whose learning rate is lower
        run.position.best = scores.acc50
        save(run.student, run.folder)
        write_rows(run.folder / f"predictions-{name}-{split}.jsonl", rows)
    run.accelerator.wait_for_everyone()


def _write(run: Run, row: dict[str, Any]) -> None:
    """Append a row to metrics.jsonl and tell whoever listens."""
    if not run.accelerator.is_main_process:
        return
    position = run.position
    row = {"step": position.step, "phrases": position.phrases, "seconds": round(position.seconds, 2)} | row
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")
    if run.board is not None:
        values = row.get("loss", {}) | {k: v for k, v in row.items() if isinstance(v, float) and k != "seconds"}
        for name, value in values.items():
            run.board.add_scalar(f"{row['event']}/{name}", value, position.step)
        run.board.flush()
    run.report(row | {"steps": round(run.recipe.train.epochs * _steps_per_epoch(run.loader, run.recipe.train))})


def _save_state(run: Run) -> None:
    """Keep everything that `--resume` needs; the file appears whole or not at all."""
    if not run.accelerator.is_main_process:
        return
    folder = run.folder / "state"
    folder.mkdir(exist_ok=True)
    state = {
        "student": run.student.state_dict(),
        "teacher": run.teacher.state_dict() if isinstance(run.teacher, ClipTeacher) else {},
        "optimizer": run.optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "position": asdict(run.position),
    }
    temporary = folder / "last.pt.part"
    torch.save(state, temporary)
    temporary.replace(folder / "last.pt")


def _restore(run: Run) -> None:
    """Go back to the last saved step, and forget what metrics.jsonl says of later ones."""
    file = run.folder / "state" / "last.pt"
    if not file.exists():
        warnings.warn(f"{run.folder} was stopped before its first saved step: it starts again.", stacklevel=3)
        (run.folder / "metrics.jsonl").unlink(missing_ok=True)
        return
    state = torch.load(file, map_location="cpu", weights_only=True)
    run.student.load_state_dict(state["student"])
    if isinstance(run.teacher, ClipTeacher):
        run.teacher.load_state_dict(state["teacher"])
    run.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    run.position = Position(**state["position"])
    metrics = run.folder / "metrics.jsonl"
    if metrics.exists() and run.accelerator.is_main_process:
        kept = []
        for line in metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= run.position.step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue  # the line that was being written when the run was killed
        write_text(metrics, "".join(kept))
