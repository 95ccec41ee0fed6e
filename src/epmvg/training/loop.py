"""The training loop: optimizer steps, the rows of metrics, scores on val, saved states."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice

import torch
from torch import nn

from epmvg.core.distributed import gathered, told
from epmvg.core.files import write_rows
from epmvg.core.hardware import use_bf16
from epmvg.core.types import Batch, InputError
from epmvg.distill.losses import Loss
from epmvg.evaluation.evaluate import predict_rows, with_misses
from epmvg.evaluation.metrics import Metrics
from epmvg.evaluation.samples import short_name
from epmvg.models.factory import save
from epmvg.training.checkpoint import save_state
from epmvg.training.faults import keep_batch
from epmvg.training.optimizer import lr_factor
from epmvg.training.processes import sum_gradients, totals
from epmvg.training.run import Run, write_row
from epmvg.training.stopping import Stopped


def fit(run: Run) -> None:
    """Take the training's steps from where it stands to its end.

    Raises:
        InputError: a loss is not finite, or none of an epoch's images can be opened.
        Stopped: a signal arrived; the state is saved.
    """
    settings, count = run.recipe.train, run.count
    at = run.position
    if max(at.scored, 0) < at.step and at.step % count.between_scores == 0:
        _score(run)  # it ended between the state and its score
    since = time.monotonic() - run.position.seconds
    lost: list[str] = []
    empty = 0  # steps in a row that had nothing to learn from
    run.student.train()
    for batches in _steps(run):
        phrases, stop = _phrases(run, batches)
        _set_lr(run)
        for batch in batches:
            lost += batch.skipped
            if batch.samples:  # else all its images were skipped, or other processes have them
                run.meter.add(_step(run, batch.to(run.accelerator.device), len(batch.samples) / phrases), batch)
        empty = 0 if phrases else empty + 1
        if phrases:
            _update(run)
        elif empty == count.per_epoch:
            raise InputError(_nothing_to_learn(lost))
        run.position.phrases += phrases
        run.position.step += 1
        run.position.seconds = time.monotonic() - since
        if run.position.step % settings.log_interval == 0:
            _log(run)
            _tell_lost(run, lost)
        due = run.position.step % count.between_scores == 0
        if due or stop or run.position.step % settings.save_interval == 0:
            save_state(run)  # before scoring, which may fail
        if stop and run.position.step < run.steps:
            _tell_lost(run, lost)
            raise _stopped(run)
        if due:
            _score(run)
            since = time.monotonic() - run.position.seconds  # the clock counts learning, not scoring
    _tell_lost(run, lost)
    if run.position.scored != run.position.step:  # a finished run that is resumed has nothing left to do
        save_state(run)
        _score(run)
    save_state(run)


def _steps(run: Run) -> Iterator[list[Batch]]:
    """Yield the batches of each optimizer step, from where the run stands to its end."""
    several, step = run.recipe.train.gradient_accumulation_steps, run.position.step
    while step < run.count.total:
        epoch, done = divmod(step, run.count.per_epoch)
        batches = run.loader.batches(epoch, done * several)
        while step < run.count.total and (taken := list(islice(batches, several))):
            yield taken
            step += 1


def _set_lr(run: Run) -> None:
    factor = lr_factor(run.position.step, run.count, run.recipe.train)
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _step(run: Run, batch: Batch, weight: float) -> Loss:
    """Add the gradient of a batch; return its loss.

    `weight` is its part of all phrases of the optimizer step: with it the gradient is the mean over these, however they
    fell to batches and processes.
    """
    loss = _loss_of(run, batch)
    if not torch.isfinite(loss.total):
        raise InputError(keep_batch(run, batch, loss))
    (loss.total * weight).backward()
    return loss


def _loss_of(run: Run, batch: Batch) -> Loss:
    """Run the student and its teacher, and compare."""
    device = run.accelerator.device
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(run.recipe.train.precision, device)):
        states = None
        if run.text_memory is not None:
            with torch.no_grad():
                states = run.text_memory(batch.tokens, batch.token_mask)
        absent = None
        if run.absence is not None:
            absent = run.absence.pairs(
                batch, run.recipe.train.negatives_per_phrase, (run.recipe.train.seed, run.position.step)
            )
        output = run.student(
            *batch.inputs, image_features=batch.cached.get("maps"), text_features=states, negative_pairs=absent
        )
        teacher = None if run.lesson is None else run.lesson(batch)
    return run.loss_of(output, batch.boxes, teacher)


def _update(run: Run) -> None:
    """Take the optimizer step, with the gradients of all processes."""
    sum_gradients((p for group in run.optimizer.param_groups for p in group["params"]), run.accelerator.num_processes)
    if run.recipe.train.max_grad_norm:
        nn.utils.clip_grad_norm_(_clipped(run), run.recipe.train.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()


def _clipped(run: Run) -> list[nn.Parameter]:
    """What the gradient's norm is taken of: a score head must not slow the student down."""
    apart = set() if run.student.iou_head is None else {id(p) for p in run.student.iou_head.parameters()}
    return [parameter for parameter in run.student.parameters() if id(parameter) not in apart]


def _phrases(run: Run, batches: Sequence[Batch]) -> tuple[int, bool]:
    """Count the phrases of an optimizer step over all its batches and processes; say whether any was told to stop."""
    own = [sum(len(batch.samples) for batch in batches), run.stop.number is not None]
    phrases, stops = totals(own, run.accelerator)
    return round(phrases), stops > 0


def _stopped(run: Run) -> Stopped:
    """Return what ends a training whose state is saved; all processes name the same signal."""
    number = next(each for each in told(gathered(run.stop.number)) if each is not None)
    return Stopped(number, run.position.step, run.steps)


def _log(run: Run) -> None:
    """Write the means since the last row, where there was anything to learn from."""
    row = run.meter.take(run.position.seconds)
    if row["loss"]:
        write_row(run, {"event": "step", "lr": _lr(run)} | row)


def _lr(run: Run) -> float:
    """The learning rate of what is not pretrained."""
    return next(float(group["lr"]) for group in run.optimizer.param_groups if group["name"] == "rest")


def _score(run: Run) -> None:
    """Score on val in float32, as `evaluate` does, and keep the weights if they are the best so far."""
    first = run.position.best < 0
    if first and run.accelerator.is_main_process:  # there is a model to use whatever befalls its scoring
        save(run.student, run.folder)
    unread: list[str] = []
    rows = predict_rows(run.student, _val_batches(run, unread))
    run.student.train()
    run.position.scored = run.position.step
    _tell_unread(run, unread)
    if not run.accelerator.is_main_process:
        return
    rows = with_misses(rows, run.val.samples)
    scores = Metrics.of(rows)
    name, split, everything = short_name(run.recipe.data.name), run.recipe.data.val_split, run.samples["val"].phrases
    sample = {"sample_of": everything} if len(rows) < everything else {}
    write_row(run, {"event": "evaluate", "data": name, "split": split} | sample | asdict(scores))
    if scores.acc50 >= run.position.best:  # of equals the later, whose learning rate is lower
        run.position.best, run.position.best_step = scores.acc50, run.position.step
        if not first:
            save(run.student, run.folder)
        write_rows(run.folder / f"predictions-{name}-{split}{'_sample' if sample else ''}.jsonl", rows)


def _val_batches(run: Run, unread: list[str]) -> Iterator[Batch]:
    """Yield the batches of val, and collect why images of it could not be read.

    A process that is alone and told to stop does so at once: the state was saved before.
    """
    for batch in run.val.batches(0):
        if run.stop.number is not None and run.accelerator.num_processes == 1:
            raise _stopped(run)
        unread += batch.skipped
        yield batch


def _tell_unread(run: Run, unread: list[str]) -> None:
    """Count and name the images of val that could not be read."""
    why = sorted({each for part in gathered(unread) for each in part})
    if why:
        text = f"Images of the validation split that cannot be read, whose phrases count as misses: {len(why)}; the "
        write_row(run, {"event": "skipped", "images": len(why), "why": f"{text}first: {why[0]}", "pictures": why})


def _nothing_to_learn(lost: Sequence[str]) -> str:
    first = f" ({lost[0].rstrip('.')})" if lost else ""
    return f"None of the images of a whole epoch can be opened{first}: check data.root and the files."


def _tell_lost(run: Run, lost: list[str]) -> None:
    """Count and name the pictures that could not be opened since the last time, each once, and forget them."""
    fresh = sorted({why for part in gathered(list(lost)) for why in part} - run.lost)
    lost.clear()
    if fresh:
        run.lost.update(fresh)
        why = f"Pictures left out so far: {len(run.lost)}; now {fresh[0].rstrip('.')}"
        more = f" (and {len(fresh) - 1} more, see metrics.jsonl)" if len(fresh) > 1 else ""
        write_row(run, {"event": "skipped", "images": len(run.lost), "why": why + more, "pictures": fresh})
