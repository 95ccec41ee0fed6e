"""The loop: batches, steps, scores on val, and what is written on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn

from epmvg.activations import LiveTensors
from epmvg.distill.losses import Loss
from epmvg.evaluation import predict_rows, short_name, with_misses, write_rows
from epmvg.hardware import use_bf16
from epmvg.metrics import Scores
from epmvg.models.factory import save
from epmvg.processes import gathered, told
from epmvg.training.faults import keep_batch
from epmvg.training.optimizer import lr_factor
from epmvg.training.run import Run, steps_per_epoch, write_row
from epmvg.training.state import save_state
from epmvg.training.stopping import Stopped
from epmvg.types import Batch, InputError


def fit(run: Run) -> None:
    settings = run.recipe.train
    steps = steps_per_epoch(run.loader, settings)
    every = max(1, round(settings.evaluate_every * steps))
    if run.position.scored < run.position.step and run.position.step % every == 0:  # it ended between state and score
        _score(run)
    since = time.monotonic() - run.position.seconds
    run.meter.start = time.monotonic()
    lost: list[str] = []
    run.network.train()
    learners = [part for part in (run.network, run.loss_of.regressor) if part is not None]
    for batches in _micro_batches(run):
        phrases, stop = _phrases(run, batches)
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
            write_row(run, {"event": "step", "lr": _lr(run)} | row)
            _tell_lost(run, lost)
        due = run.position.step % every == 0
        if due or stop or run.position.step % settings.save_every == 0:
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


def _step(run: Run, batch: Batch, share: float = 1.0) -> Loss:
    """Learn from one batch; return its loss.

    `share` is its number of phrases against the mean of the optimiser step's batches: with it the gradient is the mean
    over all phrases of the step, however they were dealt out to batches and processes.
    """
    factor = lr_factor(run.position.step, steps_per_epoch(run.loader, run.recipe.train), run.recipe.train)
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    if run.position.step == 0 and run.activation_mb is None and not run.accelerator.is_fsdp2:  # shards come and go
        known = [*run.network.parameters(), *run.network.buffers(), *batch.inputs, batch.box]
        with LiveTensors(known) as live:
            loss = _loss_of(run, batch)
        run.activation_mb = live.megabytes()
    else:
        loss = _loss_of(run, batch)
    total = loss.total
    if not torch.isfinite(total):
        raise InputError(keep_batch(run, batch, loss))
    run.accelerator.backward(total * share)
    if run.accelerator.sync_gradients:
        _agree(run)
        if run.recipe.train.clip:
            run.accelerator.clip_grad_norm_(_clipped(run), run.recipe.train.clip)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return loss


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


def _agree(run: Run) -> None:
    """Average an unfrozen teacher's gradients over processes: it is asked piece by piece, which DDP cannot wrap."""
    teacher = run.beside.get("teacher")
    if teacher is None or run.accelerator.num_processes == 1:
        return
    own = [parameter.grad for parameter in teacher.parameters() if parameter.grad is not None]
    for gradient, mean in zip(own, run.accelerator.reduce(own, "mean"), strict=True):
        gradient.copy_(mean)


def _clipped(run: Run) -> list[nn.Parameter]:
    """What the gradient's norm is taken of: a score head must not slow the student down."""
    apart = set() if run.student.score_head is None else {id(p) for p in run.student.score_head.parameters()}
    return [parameter for parameter in run.network.parameters() if id(parameter) not in apart]


def _phrases(run: Run, batches: Sequence[Batch]) -> tuple[int, bool]:
    """Count the phrases of an optimiser step over all its batches and processes; say whether any was told to stop."""
    counts = [sum(len(batch.records) for batch in batches), run.stop.number is not None]
    own = torch.tensor(counts, device=run.accelerator.device)
    phrases, stops = cast(Tensor, run.accelerator.reduce(own, "sum")).tolist()
    return phrases, stops > 0


def _stopped(run: Run) -> Stopped:
    """Return what ends a training whose state is saved; all processes name the same signal."""
    number = next(each for each in told(gathered(run.stop.number)) if each is not None)
    return Stopped(number, run.position.step, run.steps)


def _lr(run: Run) -> float:
    """The learning rate of what is not pretrained."""
    return next(float(group["lr"]) for group in run.optimizer.param_groups if group["name"] == "rest")


def _score(run: Run) -> None:
    """Score on val, all processes together, and keep the weights if they are the best so far."""
    settings = run.recipe.train
    student = run.whole()
    first = run.position.best < 0
    if first and run.accelerator.is_main_process:  # there is a model to use whatever befalls its scoring
        save(student, run.folder)
    unread: list[str] = []
    batches = _val_batches(run, unread)
    rows = predict_rows(student, batches, autocast=use_bf16(settings.precision, run.accelerator.device))
    run.network.train()
    run.meter.clear()
    run.position.scored = run.position.step
    _tell_unread(run, unread)
    if not run.accelerator.is_main_process:
        return
    rows = with_misses(rows, run.val.records)
    scores = Scores.of(rows)
    name, split = short_name(run.recipe.data.name), run.recipe.data.val
    write_row(run, {"event": "evaluate", "data": name, "split": split} | asdict(scores))
    if scores.acc50 >= run.position.best:  # of equals the later, whose learning rate is lower
        run.position.best, run.position.best_step = scores.acc50, run.position.step
        if not first:
            save(student, run.folder)
        write_rows(run.folder / f"predictions-{name}-{split}.jsonl", rows)


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


def _tell_lost(run: Run, lost: list[str]) -> None:
    """Count and name the pictures that could not be opened since the last time, each once, and forget them."""
    fresh = sorted({why for part in gathered(list(lost)) for why in part} - run.lost)
    lost.clear()
    if fresh:
        run.lost.update(fresh)
        why = f"Pictures left out so far: {len(run.lost)}; now {fresh[0].rstrip('.')}"
        more = f" (and {len(fresh) - 1} more, see metrics.jsonl)" if len(fresh) > 1 else ""
        write_row(run, {"event": "skipped", "images": len(run.lost), "why": why + more, "pictures": fresh})
