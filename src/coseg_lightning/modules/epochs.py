"""How many epochs a fit will have, by the trainer's limits of epochs and of steps."""

import math

import pytorch_lightning as pl


def planned_epochs(trainer: pl.Trainer) -> int | None:
    """Return the number of epochs of a fit, as far as it is known now; None if time limits it."""
    done, limits = trainer.current_epoch + 1, []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs)
    if trainer.max_steps >= 0:
        if math.isinf(trainer.num_training_batches):  # a stream; its length is known afterwards
            steps = math.ceil(trainer.global_step / done)
        else:
            steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        limits.append(math.ceil(trainer.max_steps / max(1, steps)))
    return min(limits, default=None)


def epochs_of_schedule(trainer: pl.Trainer) -> int | None:
    """Return the number of epochs over which a rate changes, which must not vary in an epoch."""
    is_stream = math.isinf(trainer.num_training_batches)
    return trainer.max_epochs if is_stream else planned_epochs(trainer)


def goes_on(trainer: pl.Trainer) -> bool:
    """Whether a fit that begins goes on where the same trainer's earlier one ended."""
    return trainer.current_epoch > 0 and trainer.ckpt_path is None
