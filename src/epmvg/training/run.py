"""A training: model, teacher, data, optimizer and state, with its steps, log and validation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import accelerate
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from epmvg.config.settings import Recipe
from epmvg.core.distributed import broadcast, gather
from epmvg.core.files import disk_errors, write_rows
from epmvg.core.hardware import use_bf16
from epmvg.core.types import Batch, InputError, Report, TeacherEmbeddings
from epmvg.data.loader import GroundingLoader
from epmvg.data.negatives import NegativeSampler
from epmvg.data.samples import SampleDigest
from epmvg.distill.losses import GroundingLoss
from epmvg.distill.targets import DistillationTargets
from epmvg.evaluation.evaluate import predict_rows, with_misses
from epmvg.evaluation.metrics import Metrics
from epmvg.evaluation.samples import results_stem, short_name
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder
from epmvg.models.text_encoder import TextFeatureCache
from epmvg.training.metrics import RunningMeans
from epmvg.training.optimizer import Scheduler, StepCount, lr_factor
from epmvg.training.processes import sum_gradients, sum_over_processes
from epmvg.training.signals import StopRequest, TrainingStopped


@dataclass(slots=True)
class TrainingState:
    """Progress of a run, saved in its checkpoint."""

    step: int = 0
    phrases: int = 0
    best: float = -1.0  # Acc@0.5 on the validation split
    best_step: int = -1
    validated_step: int = -1  # the last one


@dataclass(slots=True)
class Run:
    """Everything that the training loop works on."""

    recipe: Recipe
    folder: Path
    model: Grounder
    teacher: DistillationTargets | None
    criterion: GroundingLoss
    train_loader: GroundingLoader
    val_loader: GroundingLoader
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    accelerator: accelerate.PartialState
    count: StepCount
    trained_teacher: nn.Module | None  # the teacher, if it is not frozen
    report: Report
    text_cache: TextFeatureCache | None  # of a frozen text encoder
    negatives: NegativeSampler | None
    average: AveragedModel | None = None  # of the model's weights over the steps
    samples: dict[str, SampleDigest] = field(default_factory=dict)  # digests of the splits "train" and "val"
    teacher_fingerprint: str | None = None  # of a frozen teacher
    stop: StopRequest = field(default_factory=StopRequest)
    stopping: bool = False  # a process received a signal before this step
    state: TrainingState = field(default_factory=TrainingState)
    means: RunningMeans = field(default_factory=RunningMeans)
    unchecked: list[tuple[int, Tensor, dict[str, Tensor], list[Path]]] = field(default_factory=list)  # check_finite
    started: float = field(default_factory=time.monotonic)
    skipped: list[str] = field(default_factory=list)  # reasons why images were skipped, not reported yet
    reported: set[str] = field(default_factory=set)

    @property
    def saved_model(self) -> Grounder:
        """The model that is validated and saved: the one in training, or the average of its weights."""
        return self.model if self.average is None else cast(Grounder, self.average.module)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, without validation."""
        return time.monotonic() - self.started

    def steps(self) -> Iterator[Iterator[tuple[Batch, tuple[float, float]]]]:
        """Yield the micro-batches of each optimizer step, each with its fractions of the weight of the step's phrases.

        The first fraction is for the losses of boxes, the second for the distillation losses. Weights are summed over
        all micro-batches and processes; a micro-batch without phrases is left out. The caller increments `state.step`
        after each step.

        Raises:
            InputError: No image of a whole epoch can be opened.
            TrainingStopped: A signal arrived on any process; the step before was completed.
        """
        accumulation, empty_steps = self.recipe.train.gradient_accumulation_steps, 0
        while self.state.step < self.count.total:
            epoch, step = divmod(self.state.step, self.count.per_epoch)
            batches = self.train_loader.batches(epoch, step * accumulation)
            while self.state.step < self.count.total and (taken := list(islice(batches, accumulation))):
                phrases, weights = self._reduce_phrases(taken)
                empty_steps = 0 if phrases else empty_steps + 1
                if empty_steps == self.count.per_epoch:
                    first = f" ({self.skipped[0].rstrip('.')})" if self.skipped else ""
                    raise InputError(
                        f"None of the images of a whole epoch can be opened{first}. Check data.root and the files."
                    )
                self.state.phrases += phrases
                readable = [batch for batch in taken if batch.samples]
                yield ((self._on_device(batch), _fractions(batch, weights)) for batch in readable)
                if self.stopping and self.state.step < self.count.total:
                    raise self._stopped()
        self._report_skipped()

    def _on_device(self, batch: Batch) -> Batch:
        batch.num_unpadded = self.model.num_unpadded(batch.image_mask)  # on the host
        return batch.to(self.accelerator.device)

    def _reduce_phrases(self, batches: list[Batch]) -> tuple[int, tuple[float, float]]:
        """Count the phrases of an optimizer step over all processes, sum their weights, and look for signals."""
        self.skipped += [reason for batch in batches for reason in batch.skipped]
        counts = [(len(batch.samples), batch.weight, batch.distillation_weight) for batch in batches]
        local = [*map(sum, zip(*counts, strict=True)), self.stop.signal is not None]
        phrases, weight, distillation_weight, signals = sum_over_processes(local, self.accelerator.num_processes)
        self.stopping = signals > 0
        return round(phrases), (weight, distillation_weight)

    def _stopped(self) -> TrainingStopped:
        self._report_skipped()
        signal = next(number for number in broadcast(gather(self.stop.signal)) if number is not None)
        return TrainingStopped(signal, self.state.step, self.count.total)

    def autocast(self) -> torch.autocast:
        """Return the context of the recipe's precision."""
        device = self.accelerator.device
        return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(self.recipe.train.precision, device))

    def frozen_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return cached outputs of frozen encoders, and negative pairs, as keywords of the model."""
        inputs: dict[str, Any] = {"image_features": batch.cached.get("backbone_features")}
        inputs["num_unpadded"] = batch.num_unpadded
        if self.text_cache is not None:
            with torch.no_grad():
                inputs["text_features"] = self.text_cache(*self.model.tokenize(batch.phrases))  # on the host
        if self.negatives is not None:
            settings = self.recipe.train
            inputs["negative_pairs"] = self.negatives.pairs(
                batch, settings.negatives_per_phrase, (settings.seed, self.state.step)
            )
            inputs["output_negative_similarity"] = self.recipe.loss.match_weight > 0
        return inputs

    def targets(self, batch: Batch) -> TeacherEmbeddings | None:
        """Return the teacher's embeddings of a batch, or None without a teacher."""
        return None if self.teacher is None else self.teacher(batch)

    def sum_gradients(self) -> None:
        """Sum the gradients over all processes, an unfrozen teacher's too."""
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        sum_gradients(parameters, self.accelerator.num_processes)

    def clip_gradients(self) -> None:
        """Clip the norm of the model's gradients; the IoU head is left out, as its loss does not reach the rest."""
        if self.recipe.train.max_grad_norm:
            head = self.model.iou_head
            excluded = set() if head is None else {id(parameter) for parameter in head.parameters()}
            parameters = [parameter for parameter in self.model.parameters() if id(parameter) not in excluded]
            nn.utils.clip_grad_norm_(parameters, self.recipe.train.max_grad_norm)

    def update_average(self) -> None:
        """Update the moving average of the weights, if there is one."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def log_due(self) -> bool:
        return self.state.step % self.recipe.train.log_interval == 0

    def validation_due(self) -> bool:
        last = self.state.step == self.count.total
        due = last or self.state.step % self.count.eval_interval == 0
        done = self.state.validated_step == self.state.step or not self.state.step
        return due and not done and (last or not self.stopping)

    def checkpoint_due(self) -> bool:
        last = self.state.step == self.count.total
        return last or self.stopping or self.state.step % self.recipe.train.save_interval == 0

    def is_read_step(self) -> bool:
        """Return whether the device is read at the end of this step: for a log, a validation or a checkpoint."""
        step, settings = self.state.step + 1, self.recipe.train
        intervals = (settings.log_interval, settings.save_interval, self.count.eval_interval)
        return self.stopping or step == self.count.total or any(step % interval == 0 for interval in intervals)

    def log(self) -> None:
        """Write the running means to metrics.jsonl, and report images that were skipped."""
        row = self.means.compute(self.seconds)
        if row["loss"]:
            lr = self.recipe.train.lr * lr_factor(self.state.step - 1, self.count, self.recipe.train)
            self.write_metrics({"event": "step", "lr": lr} | row)
        self._report_skipped()

    def write_metrics(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl and report it; the first process only."""
        if not self.accelerator.is_main_process:
            return
        row = {"step": self.state.step, "phrases": self.state.phrases, "seconds": round(self.seconds, 2)} | row
        file = self.folder / "metrics.jsonl"
        with disk_errors(file), file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        self.report(row | {"steps": self.count.total})

    def _report_skipped(self) -> None:
        """Report the number of skipped images, and the reason for each that was not reported before."""
        new = sorted({reason for reasons in gather(self.skipped) for reason in reasons} - self.reported)
        self.skipped = []
        self.reported.update(new)
        self._write_skipped("Images or boxes skipped so far", len(self.reported), new)

    def _write_skipped(self, title: str, count: int, reasons: list[str]) -> None:
        if reasons:
            more = f" (and {len(reasons) - 1} more, see metrics.jsonl)" if len(reasons) > 1 else ""
            why = f"{title}: {count}; {reasons[0].rstrip('.')}{more}"
            self.write_metrics({"event": "skipped", "images": count, "why": why, "reasons": reasons})

    def validate(self) -> None:
        """Evaluate on the validation split in float32, as `evaluate` does, and save the weights if they are the best.

        An unreadable image is a miss. `seconds` excludes validation.
        """
        began = time.monotonic()
        unreadable: list[str] = []
        rows = predict_rows(self.saved_model, self._val_batches(unreadable))
        self.model.train()
        self.state.validated_step = self.state.step
        reasons = sorted({reason for part in gather(unreadable) for reason in part})
        self._write_skipped("Images of the validation split whose phrases count as misses", len(reasons), reasons)
        if self.accelerator.is_main_process:
            self._log_validation(with_misses(rows, self.val_loader.samples))
        self.started += time.monotonic() - began

    def _val_batches(self, unreadable: list[str]) -> Iterator[Batch]:
        for batch in self.val_loader.batches(0):
            if self.stop.signal is not None and self.accelerator.num_processes == 1:
                raise self._stopped()
            unreadable += batch.skipped
            yield batch

    def _log_validation(self, rows: list[Any]) -> None:
        metrics = Metrics.of(rows)
        name, split = short_name(self.recipe.data.name), self.recipe.data.val_split
        total = self.samples["val"].phrases
        subset = {"sample_of": total} if len(rows) < total else {}
        self.write_metrics({"event": "evaluate", "data": name, "split": split} | subset | asdict(metrics))
        if metrics.acc50 >= self.state.best:  # on a tie, the later step, whose learning rate is lower
            self.state.best, self.state.best_step = metrics.acc50, self.state.step
            save(self.saved_model, self.folder)
            stem = results_stem(self.folder, self.recipe.data, split)
            write_rows(self.folder / f"predictions-{stem}{'_sample' if subset else ''}.jsonl", rows)


def _fractions(batch: Batch, weights: tuple[float, float]) -> tuple[float, float]:
    """Return a micro-batch's fractions of the two weights of its step; 0 of the boxes where all is unlabeled."""
    boxes, distillation = weights
    return batch.weight / boxes if boxes else 0.0, batch.distillation_weight / distillation
