"""The training loop."""

from __future__ import annotations

from epmvg.training.checkpoint import save_checkpoint
from epmvg.training.errors import check_finite
from epmvg.training.run import Run


def fit(run: Run) -> None:
    """Train from the current step to the last.

    Raises:
        InputError: A loss is NaN or infinite, or no image of a whole epoch can be opened.
        TrainingStopped: A signal arrived; the step was completed and a checkpoint saved.
    """
    if run.validation_due():  # the run ended between a checkpoint and its validation
        run.validate()
        save_checkpoint(run)
    run.model.train()
    for micro_batches in run.steps():
        for batch, fractions in micro_batches:
            with run.autocast():
                output = run.model(*batch.inputs, **run.frozen_inputs(batch))
                targets = run.targets(batch)  # None without a teacher
            losses = run.criterion(output, batch.boxes, targets, batch.weights)
            check_finite(run, batch, losses)
            losses.scaled(*fractions).backward()  # the step's gradient is the weighted mean over its phrases
            run.means.update(losses, batch)

        run.sum_gradients()
        run.clip_gradients()
        run.optimizer.step()
        run.scheduler.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.update_average()
        run.state.step += 1

        if run.log_due():
            run.log()
        if run.validation_due():
            save_checkpoint(run)  # so that a failed validation loses nothing
            run.validate()
        if run.checkpoint_due():
            save_checkpoint(run)
