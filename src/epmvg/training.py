"""The training loop: a student learns boxes, and a teacher's vectors where there is one.

The folder it leaves is enough for everything that follows: config.yaml, model.yaml, model.safetensors (best on val),
tokenizer/, metrics.jsonl, predictions, and state/ for --resume.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import accelerate
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from epmvg.activations import LiveTensors
from epmvg.config import DistillSettings, ModelSettings, Recipe, TrainSettings
from epmvg.data.absent import Absence
from epmvg.data.archives import is_there
from epmvg.data.catalog import cache_folder, open_records, share_of
from epmvg.data.jsonl import Skipped, json_line, rows_of
from epmvg.data.loader import GroundingLoader
from epmvg.data.shard_loader import ShardLoader
from epmvg.data.shards import shard_files
from epmvg.data.transforms import Augment, swap_sides
from epmvg.distill.cache import CachedTeacher
from epmvg.distill.lesson import Lesson, photo_view
from epmvg.distill.losses import GroundingLoss, Loss, Regressor
from epmvg.distill.teacher import ClipTeacher, View
from epmvg.evaluation import evaluation_loader, predict_rows, short_name, write_rows
from epmvg.hardware import is_out_of_memory, use_bf16
from epmvg.metrics import Scores
from epmvg.models.factory import create_model, save, start_from
from epmvg.models.grounder import Grounder
from epmvg.models.memory import TextMemory
from epmvg.processes import gathered, is_lost_process
from epmvg.store import stored_maps
from epmvg.types import Batch, InputError, Progress, Record
from epmvg.writing import naming, replacing, write_text

LOCK = ".lock"
"""Held in a run's folder while it is written; the system lets it go when its holder dies."""

Report = Callable[[dict[str, Any]], None]
"""Called with each row of metrics.jsonl as it is written."""


@dataclass(slots=True)
class Position:
    """How far a run has come: all that `--resume` needs beside tensors."""

    step: int = 0
    phrases: int = 0
    seconds: float = 0.0
    best: float = -1.0
    scored: int = -1  # the step at which val was last asked


class Meter:
    """Running means over phrases since the last row of metrics."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.start = time.monotonic()
        self.images = self.phrases = 0
        self.terms: dict[str, float] = {}

    def add(self, loss: Loss, batch: Batch) -> None:
        self.images += len(batch.letterbox)
        self.phrases += len(batch.records)
        for name, term in [*loss.terms.items(), ("total", loss.total)]:
            self.terms[name] = self.terms.get(name, 0.0) + term.item() * len(batch.records)

    def state(self) -> dict[str, Any]:
        """Return what has been counted, so that a resumed run's next row is an unbroken one's."""
        return {"images": self.images, "phrases": self.phrases, "terms": dict(self.terms)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.images, self.phrases, self.terms = state["images"], state["phrases"], dict(state["terms"])

    def take(self, accelerator: accelerate.Accelerator) -> dict[str, Any]:
        """Return means and rates since the last time, of all processes together."""
        seconds = time.monotonic() - self.start
        own = torch.tensor([self.images, self.phrases, *self.terms.values()], device=accelerator.device)
        images, phrases, *terms = cast(Tensor, accelerator.reduce(own, "sum")).tolist()
        row = {
            "loss": {name: round(value / phrases, 5) for name, value in zip(self.terms, terms, strict=True)},
            "images_per_s": round(images / seconds, 2),
            "phrases_per_s": round(phrases / seconds, 2),
        }
        self.clear()
        return row


@dataclass(slots=True)
class Run:
    """What the loop works on."""

    recipe: Recipe
    folder: Path
    student: Grounder
    lesson: Lesson | None
    loss_of: GroundingLoss
    loader: GroundingLoader | ShardLoader
    val: GroundingLoader
    optimizer: torch.optim.Optimizer
    accelerator: accelerate.Accelerator
    network: nn.Module  # the student as Accelerate wrapped it
    beside: dict[str, nn.Module]  # what trains beside the student and is dropped after it
    report: Report
    text_memory: TextMemory | None
    absence: Absence | None  # which phrases the score head may learn "nothing there" from
    board: Any = None  # a TensorBoard writer, if the recipe wants one
    activation_mb: float | None = None  # what the run's first forward pass left for its backward pass
    position: Position = field(default_factory=Position)
    meter: Meter = field(default_factory=Meter)
    lost: set[str] = field(default_factory=set)  # why pictures were left out, of those already told


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
    accelerate.state.AcceleratorState._reset_state()  # it keeps the precision of this process's last training
    accelerator = accelerate.Accelerator(
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),  # else several processes stay alone
        mixed_precision="bf16" if use_bf16(settings.precision) else "no",
        gradient_accumulation_steps=settings.accumulate,
    )
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(_claimed(folder, recipe, resume))
        accelerator.wait_for_everyone()
        tell = report if report is not None and accelerator.is_main_process else _say_nothing
        try:
            with _advising(recipe):
                run = _prepare(recipe, folder, accelerator, tell)
        except InputError:
            if not resume and accelerator.is_main_process:  # leave no folder behind that would refuse the next try
                (folder / "config.yaml").unlink()
                (folder / LOCK).unlink()
                with suppress(OSError):  # something hidden was there before
                    folder.rmdir()
            raise
        if resume:
            _restore(run)
        with _stopping_together(accelerator.num_processes), _advising(recipe):
            _fit(run)
    return folder


@contextmanager
def _advising(recipe: Recipe) -> Iterator[None]:
    """Where memory runs out, say what takes less of it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        data, settings = recipe.data, recipe.train
        if "DataLoader worker" in str(error):
            raise InputError(
                f"A process that opens pictures was killed, perhaps for memory: lower data.workers={data.workers}."
            ) from error
        if not is_out_of_memory(error):
            raise
        cures = [f"lower data.images={data.images} (and raise train.accumulate={settings.accumulate} as much)"]
        cures += [f"lower data.phrases={data.phrases}"] if data.phrases > 1 else []
        cures += [] if settings.checkpoint_layers else ["set train.checkpoint_layers=true"]
        raise InputError(f"Memory ran out: {', '.join(cures)}, or set a smaller model.canvas.") from error


@contextmanager
def _stopping_together(processes: int) -> Iterator[None]:
    """Say it plainly where another process of the training ended, or the launcher stops this one because of that."""

    def stop(*_: object) -> None:
        raise InputError("Another process of this training ended, or it was told to stop: go on with --resume.")

    if processes == 1:
        yield
        return
    heard = threading.current_thread() is threading.main_thread()  # no other thread may listen to signals
    before = signal.signal(signal.SIGTERM, stop) if heard else None
    try:
        yield
    except RuntimeError as error:
        if is_lost_process(error):
            raise InputError("Another process of this training ended: go on with --resume.") from error
        raise
    finally:
        if heard:
            signal.signal(signal.SIGTERM, before)


def _say_nothing(row: dict[str, Any]) -> None:
    pass


@contextmanager
def _claimed(folder: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Hold the folder for as long as it is written, once it is ours to write."""
    _check_folder(folder, recipe, resume)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(folder / LOCK).acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{folder} is being written by another training: wait for its end, or choose another --out."
            ) from error
    with held:
        _check_folder(folder, recipe, resume)  # again, for now nobody else can write it
        if not resume:
            write_text(folder / "config.yaml", recipe.dump())
        yield


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse a folder that holds another run, or none to go on with."""
    config = folder / "config.yaml"
    if resume:
        if not config.exists():
            raise InputError(f"{folder} holds no run to resume: leave out --resume to start one.")
        if config.read_text(encoding="utf-8") != recipe.dump():
            raise InputError(f"{folder} was started with other settings: resume with the same recipe and overrides.")
        return
    if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise InputError(f"{folder} is not empty: choose another --out, or go on with that run by --resume.")


def _prepare(recipe: Recipe, folder: Path, accelerator: accelerate.Accelerator, report: Report) -> Run:
    settings = recipe.train
    accelerate.utils.set_seed(settings.seed, device_specific=True)
    student = _student(recipe.model)
    if recipe.distill is not None:
        _check_student(student, recipe.distill)
    student.checkpoint_layers(settings.checkpoint_layers)
    clip = open_teacher(recipe)
    regressor = None
    if clip is not None and recipe.distill is not None and recipe.distill.fit == "linear":
        regressor = Regressor(student.width, clip.width, recipe.distill.sides)
    loader, val = _loaders(recipe, student, accelerator, report)
    groups = parameter_groups(student, settings, clip, regressor)
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    network = accelerator.prepare_model(student)
    beside = {"teacher": None if clip is None or clip.frozen else clip, "regressor": regressor}
    return Run(
        recipe=recipe,
        folder=folder,
        student=student,
        lesson=None if clip is None else _lesson(recipe, clip.to(accelerator.device)),
        loss_of=_loss(recipe, None if regressor is None else accelerator.prepare_model(regressor)),
        loader=loader,
        val=val,
        optimizer=accelerator.prepare_optimizer(optimizer),
        accelerator=accelerator,
        network=network,
        beside={name: part for name, part in beside.items() if part is not None},
        report=report,
        text_memory=TextMemory(student.linguistic) if student.linguistic.frozen else None,
        absence=_absence(student, loader, settings),
        board=_board(folder) if settings.tensorboard and accelerator.is_main_process else None,
    )


def _absence(student: Grounder, loader: GroundingLoader | ShardLoader, settings: TrainSettings) -> Absence | None:
    """Say which phrases are absent where; of a stream too little is known to say."""
    if student.score_head is None or not settings.absent or isinstance(loader, ShardLoader):
        return None
    return Absence(loader.records)


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
    view: View = "content" if distill.view == "content" else "canvas"
    return ClipTeacher(distill.teacher, distill.pretrained, frozen=distill.frozen, view=view)


def _check_student(student: Grounder, distill: DistillSettings) -> None:
    """Refuse what this student could not learn."""
    if distill.at == "input" and distill.image and student.vls == "learned":
        raise InputError("A learned [VLS] knows nothing of its image at the fusion's input: set distill.at=output.")
    if distill.dense and student.similarity is None and not student.anchored:
        raise InputError("distill.dense supervises a map that this student lacks: set model.similarity=true.")
    if distill.dense and len(student.visual.strides) > 1:
        raise InputError("distill.dense needs one map of visual tokens: give model.visual.strides one stride.")


def _lesson(recipe: Recipe, clip: ClipTeacher) -> Lesson:
    """Plan what the teacher is asked; what a frozen one has answered before comes from its files."""
    distill = recipe.distill
    assert distill is not None
    return Lesson(
        CachedTeacher(clip, cache_folder() / "answers") if clip.frozen else clip,
        photo=distill.view == "photo",
        fixed=recipe.data.augment is None,
        sides=distill.sides,
        dense=distill.dense > 0,
    )


def cache_teacher(recipe: Recipe, progress: Progress | None = None) -> dict[str, Any]:
    """Ask the recipe's frozen teacher beforehand all that a training with `distill.view=photo` will ask.

    Phrases are asked in both spellings where a flip would swap their sides, photos with their patches where
    `distill.dense` wants them, and nothing about a side whose weight is 0. What was answered before is kept, so a pass
    that was cut off goes on where it was.

    Returns:
        answers and megabytes of the file, seconds of the pass, and the file's path.

    Raises:
        InputError: the recipe has no frozen teacher, or its data cannot be read.
    """
    teacher = open_teacher(recipe)
    distill = recipe.distill
    if teacher is None or distill is None or not teacher.frozen:
        raise InputError("There is no frozen teacher in this recipe: give distill=NAME or distill=FOLDER.")
    data, skipped = recipe.data, Skipped()
    records = open_records(data.name, split=data.train, root=data.root, split_key=data.split_key, skipped=skipped)
    records = share_of(_with_photo(records, skipped), data.share)
    flips = data.augment is not None and data.augment.flip > 0
    phrases = [record.phrase for record in records] if distill.text or distill.dense else []
    if distill.text and flips:
        phrases += [swap_sides(phrase) for phrase in phrases]
    photos = [record.image for record in records] if distill.image or distill.dense else []
    cached = CachedTeacher(teacher, cache_folder() / "answers")
    built = cached.fill(phrases, photos, photo_view(teacher.side), progress, patches=distill.dense > 0)
    return built | {"file": str(cached.answers.path)}


def _loss(recipe: Recipe, regressor: nn.Module | None) -> GroundingLoss:
    settings = recipe.loss.model_dump()
    if recipe.distill is not None:
        settings |= recipe.distill.model_dump(include={"image", "text", "dense", "distance", "at"})
    return GroundingLoss(**settings, regressor=regressor)


def _loaders(
    recipe: Recipe, student: Grounder, accelerator: accelerate.Accelerator, report: Report
) -> tuple[GroundingLoader | ShardLoader, GroundingLoader]:
    """Make the training loader and the validation loader, with stored answers where the recipe wants them."""
    data, settings = recipe.data, recipe.train
    val = open_records(data.name, split=data.val, root=data.root, split_key=data.split_key)
    if settings.evaluate_limit:
        val = val[: settings.evaluate_limit]
    _refuse_missing(val)
    canvas = data.canvas or student.canvas
    if canvas != student.canvas and (settings.store or not student.sine):
        raise InputError(f"data.canvas={canvas} needs model.position=sine and train.store=false.")
    share = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    stored: dict[str, Tensor] = {}
    stored_val: dict[str, Tensor] = {}

    def make(records: list[Record], window: int = 0) -> GroundingLoader:
        return GroundingLoader(
            records,
            student.tokenize,
            canvas=canvas,
            images=data.images,
            phrases=data.phrases,
            augment=Augment(**data.augment.model_dump()) if data.augment else None,
            shuffle=True,
            seed=settings.seed + 1000 * window,
            workers=data.workers,
            tolerant=True,
            stored=stored,
            cache_gb=data.cache_gb,
            **share,
        )

    loader: GroundingLoader | ShardLoader
    if data.name.endswith(".tar"):
        if settings.store:
            raise InputError("train.store=true cannot be had with shards, which are streamed: set it to false.")
        if data.share < 1:
            raise InputError(
                "data.share cannot be had with shards, which are streamed: name some of the files instead."
            )
        files = shard_files(data.name)
        loader = ShardLoader(files, make, split=data.train, split_key=data.split_key, seed=settings.seed)
        _report_skipped(loader.skipped, report)
        return loader, evaluation_loader(student, val, images=data.images, **share)
    skipped = Skipped()
    records = open_records(data.name, split=data.train, root=data.root, split_key=data.split_key, skipped=skipped)
    records = share_of(_with_photo(records, skipped), data.share)
    _report_skipped(skipped, report)
    if settings.store:
        if data.augment is not None or not student.visual.frozen:
            raise InputError("train.store=true needs data.augment=null and a wholly frozen backbone (model.visual).")
        folder = cache_folder() / "maps"
        stored = {"maps": stored_maps(student, records, folder, settings.store_gb, report)}
        stored_val = {"maps": stored_maps(student, val, folder, settings.store_gb, report)}
    return make(records), evaluation_loader(student, val, images=data.images, stored=stored_val, **share)


def _refuse_missing(val: list[Record]) -> None:
    """Say before the first step what would end the run at its first score, which must count every row."""
    missing = [image for image in {record.image: None for record in val} if not is_there(image)]
    if missing:
        raise InputError(
            f"Images of the validation split that do not exist: {len(missing)} (first: {missing[0]}): check data.root, "
            "or take their rows out of the split."
        )


def _report_skipped(skipped: Skipped, report: Report) -> None:
    if skipped.counts:
        report({"event": "skipped", "rows": sum(skipped.counts.values()), "why": str(skipped)})


def _with_photo(records: list[Record], skipped: Skipped) -> list[Record]:
    """Leave out rows whose photo is not there."""
    there = {image: is_there(image) for image in {record.image for record in records}}
    for record in records:
        if not there[record.image]:
            skipped.add("the image is missing", str(record.image))
    kept = [record for record in records if there[record.image]]
    if not kept:
        raise InputError(f"None of the {len(there)} images exists (first: {records[0].image}): check data.root.")
    return kept


def parameter_groups(
    student: Grounder,
    settings: TrainSettings,
    teacher: ClipTeacher | None = None,
    regressor: Regressor | None = None,
) -> list[dict[str, Any]]:
    """Split what trains into groups with learning rates of their own (sec. 4.2), by module.

    An unfrozen teacher trains along with the student at its own rate (Table 4), a regressor as what is not pretrained.
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
    if regressor is not None:
        groups.append({"name": "regressor", "params": list(regressor.parameters()), "lr": settings.lr})
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


def _steps_per_epoch(loader: GroundingLoader | ShardLoader, settings: TrainSettings) -> int:
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


def _micro_batches(run: Run) -> Iterator[list[Batch]]:
    """Yield the batches of each optimiser step; what is left over at the end of the run steps no more."""
    batches, several = _batches(run), run.recipe.train.accumulate
    while len(step := list(islice(batches, several))) == several:
        yield step


def _fit(run: Run) -> None:
    settings = run.recipe.train
    steps = _steps_per_epoch(run.loader, settings)
    every = max(1, round(settings.evaluate_every * steps))
    since = time.monotonic() - run.position.seconds
    run.meter.start = time.monotonic()
    lost: list[str] = []
    run.network.train()
    learners = [part for part in (run.network, run.loss_of.regressor) if part is not None]
    for batches in _micro_batches(run):
        phrases = _phrases(run, batches)
        for batch in batches:
            share = len(batch.records) * len(batches) * run.accelerator.num_processes / phrases
            with run.accelerator.accumulate(*learners):
                loss = _step(run, batch.to(run.accelerator.device), share)
            run.meter.add(loss, batch)
            lost += batch.skipped
        run.position.phrases += phrases
        run.position.step += 1
        run.position.seconds = time.monotonic() - since
        if run.position.step % settings.log_every == 0:
            row = run.meter.take(run.accelerator)
            if run.activation_mb is not None:
                row["activation_mb"], run.activation_mb = run.activation_mb, None
            _write(run, {"event": "step", "lr": _lr(run)} | row)
            _tell_lost(run, lost)
        if run.position.step % every == 0:
            _validate(run)
            since = time.monotonic() - run.position.seconds  # the clock counts learning, not scoring
            run.meter.clear()
        if run.position.step % settings.save_every == 0:
            _save_state(run)
    _tell_lost(run, lost)
    if run.position.scored != run.position.step:  # a finished run that is resumed has nothing left to do
        _validate(run)
    _save_state(run)


def _tell_lost(run: Run, lost: list[str]) -> None:
    """Count and name the pictures that could not be opened since the last time, each once, and forget them."""
    fresh = sorted({why for part in gathered(list(lost)) for why in part} - run.lost)
    lost.clear()
    if fresh:
        run.lost.update(fresh)
        why = f"Pictures left out so far: {len(run.lost)}; now {fresh[0].rstrip('.')}"
        more = f" (and {len(fresh) - 1} more, see metrics.jsonl)" if len(fresh) > 1 else ""
        _write(run, {"event": "skipped", "images": len(run.lost), "why": why + more, "pictures": fresh})


def _phrases(run: Run, batches: Sequence[Batch]) -> int:
    """Count the phrases of an optimiser step over all its batches and processes."""
    own = torch.tensor(sum(len(batch.records) for batch in batches), device=run.accelerator.device)
    return int(cast(Tensor, run.accelerator.reduce(own, "sum")))


def _step(run: Run, batch: Batch, share: float = 1.0) -> Loss:
    """Learn from one batch; return its loss.

    `share` is its number of phrases against the mean of the optimiser step's batches: with it the gradient is the mean
    over all phrases of the step, however they were dealt out to batches and processes.
    """
    factor = lr_factor(run.position.step, _steps_per_epoch(run.loader, run.recipe.train), run.recipe.train)
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    if run.position.step == 0 and run.activation_mb is None:
        known = [*run.network.parameters(), *run.network.buffers(), *batch.inputs, batch.box]
        with LiveTensors(known) as live:
            loss = _loss_of(run, batch)
        run.activation_mb = live.megabytes()
    else:
        loss = _loss_of(run, batch)
    total = loss.total
    if not torch.isfinite(total):
        raise InputError(_keep_batch(run, batch, loss))
    run.accelerator.backward(total * share)
    if run.accelerator.sync_gradients and run.recipe.train.clip:
        run.accelerator.clip_grad_norm_(_clipped(run), run.recipe.train.clip)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return loss


def _keep_batch(run: Run, batch: Batch, loss: Loss) -> str:
    """Keep the batch whose loss is no number, as it was seen and as rows of a data set; say which it is and where."""
    step = run.position.step + 1
    file = run.folder / f"batch-{step}-{run.accelerator.process_index}.safetensors"
    names = ("image", "pad", "tokens", "token_pad", "owner", "box")
    seen = {name: getattr(batch, name).contiguous() for name in names} | batch.stored
    terms = {name: str(term.item()) for name, term in loss.terms.items()}
    with replacing(file) as temporary:
        safetensors.torch.save_file(seen, temporary, {"step": str(step), "loss": json.dumps(terms)})
    with replacing(file.with_suffix(".jsonl")) as temporary, temporary.open("wb") as out:
        out.writelines(json_line(row) for row in rows_of(batch.records, run.folder))
    wrong = ", ".join(name for name, term in loss.terms.items() if not torch.isfinite(term)) or "total"
    images = ", ".join(sorted({record.image.name for record in batch.records})[:3])
    whole = all(bool(torch.isfinite(parameter).all()) for parameter in run.network.parameters())
    cure = "lower train.lr or set train.clip=1" if whole else "weights were no numbers before: lower train.lr"
    return (
        f"The loss became {loss.total.item()} at step {step} (term {wrong}; images {images}, ...): "
        f"the batch is in {file} and .jsonl; {cure}."
    )


def _clipped(run: Run) -> list[nn.Parameter]:
    """What the gradient's norm is taken of: a score head must not slow the student down."""
    apart = set() if run.student.score_head is None else {id(p) for p in run.student.score_head.parameters()}
    return [parameter for parameter in run.network.parameters() if id(parameter) not in apart]


def _loss_of(run: Run, batch: Batch) -> Loss:
    """Ask the student and its teacher, and compare."""
    with run.accelerator.autocast():
        states = None
        if run.text_memory is not None:
            with torch.no_grad():
                states = run.text_memory(batch.tokens, batch.token_pad)
        absent = None
        if run.absence is not None:
            absent = run.absence.pairs(batch, run.recipe.train.absent, (run.recipe.train.seed, run.position.step))
        output = run.network(*batch.inputs, features=batch.stored.get("maps"), states=states, absent=absent)
        teacher = None if run.lesson is None else run.lesson(batch)
    return run.loss_of(output, batch.box, teacher)


def _lr(run: Run) -> float:
    """The learning rate of what is not pretrained."""
    return next(float(group["lr"]) for group in run.optimizer.param_groups if group["name"] == "rest")


def _validate(run: Run) -> None:
    """Score on val, all processes together, and keep the weights if they are the best so far."""
    settings = run.recipe.train
    run.position.scored = run.position.step
    rows = predict_rows(run.student, run.val.batches(0), autocast=use_bf16(settings.precision))
    run.network.train()
    if not run.accelerator.is_main_process:
        return
    scores = Scores.of(rows)
    name, split = short_name(run.recipe.data.name), run.recipe.data.val
    _write(run, {"event": "evaluate", "data": name, "split": split} | asdict(scores))
    if scores.acc50 >= run.position.best:  # of equals the later, whose learning rate is lower
        run.position.best = scores.acc50
        save(run.student, run.folder)
        write_rows(run.folder / f"predictions-{name}-{split}.jsonl", rows)


def _write(run: Run, row: dict[str, Any]) -> None:
    """Append a row to metrics.jsonl and tell whoever listens."""
    if not run.accelerator.is_main_process:
        return
    position = run.position
    row = {"step": position.step, "phrases": position.phrases, "seconds": round(position.seconds, 2)} | row
    file = run.folder / "metrics.jsonl"
    with naming(file), file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")
    if run.board is not None:
        values = row.get("loss", {}) | {k: v for k, v in row.items() if isinstance(v, float) and k != "seconds"}
        for name, value in values.items():
            run.board.add_scalar(f"{row['event']}/{name}", value, position.step)
        run.board.flush()
    run.report(row | {"steps": round(run.recipe.train.epochs * _steps_per_epoch(run.loader, run.recipe.train))})


def _save_state(run: Run) -> None:
    """Keep everything that `--resume` needs; the state before it stays as previous.pt.

    torch writes a checksum of each tensor, which `_restore` compares.
    """
    own = gathered((torch.get_rng_state(), run.meter.state()))
    if not run.accelerator.is_main_process:
        return
    for name, tensor in run.student.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} holds no numbers any more after step {run.position.step}: lower train.lr or set train.clip=1; "
                f"{run.folder / 'state'} keeps the state before."
            )
    folder = run.folder / "state"
    with naming(folder):
        folder.mkdir(exist_ok=True)
    state = {
        "student": run.student.state_dict(),
        "beside": {name: part.state_dict() for name, part in run.beside.items()},
        "optimizer": run.optimizer.state_dict(),
        "random": [random for random, _ in own],  # of each process, like the next
        "meter": [meter for _, meter in own],
        "position": asdict(run.position),
    }
    last = folder / "last.pt"
    with replacing(last) as temporary:
        with temporary.open("wb") as out:
            torch.save(state, out)
        if last.exists():
            last.replace(folder / "previous.pt")


def _restore(run: Run) -> None:
    """Go back to the last saved step, and forget what metrics.jsonl says of later ones."""
    state = _read_state(run.folder / "state")
    if state is None:
        warnings.warn(f"{run.folder} was stopped before its first saved step: it starts again.", stacklevel=3)
        (run.folder / "metrics.jsonl").unlink(missing_ok=True)
        return
    processes = len(state["random"])
    if processes != run.accelerator.num_processes:
        raise InputError(f"{run.folder} was trained by {processes} processes: resume it with as many.")
    run.student.load_state_dict(state["student"])
    for name, part in run.beside.items():
        part.load_state_dict(state["beside"][name])
    run.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"][run.accelerator.process_index])
    if "meter" in state:  # runs begun before it was kept go on without
        run.meter.load_state(state["meter"][run.accelerator.process_index])
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


def _read_state(folder: Path) -> dict[str, Any] | None:
    """Read the last saved state, or the one before it where the last is damaged; None where none was saved.

    Raises:
        InputError: neither can be read.
    """
    files = [file for file in (folder / "last.pt", folder / "previous.pt") if file.exists()]
    for file in files:
        state = _whole_state(file)
        if state is not None:
            if file != files[0]:
                step = state["position"]["step"]
                warnings.warn(f"{files[0]} is damaged: going on from {file.name}, step {step}.", stacklevel=4)
            return state
    if files:
        raise InputError(
            f"{files[0]} is damaged and no other state is whole: start again with another --out, "
            f"from this run's best weights by model.start={folder.parent}."
        )
    return None


def _whole_state(file: Path) -> dict[str, Any] | None:
    """Read a state whose checksums are right, or return None."""
    try:
        with zipfile.ZipFile(file) as parts:
            if parts.testzip() is not None:
                return None
        return cast(dict[str, Any], torch.load(file, map_location="cpu", weights_only=True))
    except PermissionError:
        raise
    except Exception:  # on broken bytes its readers raise nearly anything
        return None
