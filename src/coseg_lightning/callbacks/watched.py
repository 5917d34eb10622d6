"""WatchedSamples: a few samples, read several times as the networks would get them."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.seed import isolate_rng

from coseg_lightning.errors import InputError
from coseg_lightning.labels.views import spread
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch, one_of
from coseg_lightning.modules.buffers import evaluating
from coseg_lightning.modules.loaders import found_loader, own_batches, reading, taken
from coseg_lightning.modules.steps import SegmentationSteps

WATCHED = 8  # samples, spread over the dataset
TIMES = 5  # augmentation may leave a sample unchanged once


class WatchedSamples:
    """Eight samples of a dataset, each read several times alone, and some once in one batch.

    One copy of the training loader reads them, in one worker if it has any. Several workers would
    take seconds to start. Reading in this process would open files that all workers then share.

    Args:
        trainer: The trainer, whose training dataloader has the collate function.
        dataset: The dataset.
        times: How often each sample is read alone.

    Attributes:
        indices: The samples, by their indices in the dataset.
    """

    def __init__(self, trainer: pl.Trainer, dataset: Any, *, times: int = TIMES) -> None:
        self.indices = spread(len(dataset), WATCHED)
        size = found_loader(trainer.train_dataloader).batch_size or WATCHED
        alone = [[index] for index in self.indices] * times
        self._alone: list[Any] = []
        self._together: Any = None
        every = [*alone, self.indices[:size]]
        with isolate_rng(), compat.validating(trainer), _explained(trainer, dataset):
            loader = reading(trainer.train_dataloader, dataset, every, workers=1)
            batches = taken(loader, every)
            self._alone = [next(batches) for _ in alone]
            with suppress(RuntimeError):  # images of several sizes may make no batch
                self._together = next(batches)

    def alone(self, trainer: pl.Trainer, *, training: bool = False) -> list[list[Batch]]:
        """Return the samples as the networks get them, each in a batch of its own.

        Args:
            trainer: The trainer.
            training: Whether hooks see a training stage; else validation, as in ranking.

        Returns:
            The samples of each reading.
        """
        batches = _prepared(trainer, self._alone, training=training)
        count = len(self.indices)
        return [batches[first : first + count] for first in range(0, len(batches), count)]

    def together(self, trainer: pl.Trainer, *, training: bool = False) -> list[list[Batch]]:
        """Return the first samples, read in one batch of the loader's size.

        The result is empty if images of several sizes cannot form a batch.

        Args:
            trainer: The trainer.
            training: See `alone`.

        Returns:
            The samples of each preparation by hooks and step.
        """
        if self._together is None:
            return [[]]
        batches = _prepared(trainer, [self._together] * TIMES, training=training)
        return [[one_of(batch, n) for n in range(len(batch.masks))] for batch in batches]


def _prepared(
    trainer: pl.Trainer, batches: Sequence[Any], *, training: bool = False
) -> list[Batch]:
    """Pass batches through all hooks, and through the step up to its networks."""
    module = trainer.lightning_module
    assert isinstance(module, SegmentationSteps)

    def prepared() -> list[Batch]:  # of copies, since a hook may change a batch in place
        return [module.as_trained(compat.prepare_batch(trainer, copy.deepcopy(b))) for b in batches]

    with isolate_rng():  # what hooks draw must not change training
        if training:
            return prepared()
        with compat.validating(trainer), evaluating(module):
            return prepared()


def is_reordered(
    alone: Sequence[Batch], together: Sequence[Batch], same: Callable[[Batch, Batch], bool]
) -> bool:
    """Whether a common batch holds the same samples in another order.

    Args:
        alone: The samples, each from a batch of its own; those behind the batch are left out.
        together: The samples of the batch.
        same: Whether two of them are the same.
    """
    left = list(alone[: len(together)])
    if all(map(same, left, together)):
        return False
    for sample in together:
        place = next((n for n, other in enumerate(left) if same(other, sample)), None)
        if place is None:
            return False
        del left[place]
    return True


@contextmanager
def _explained(trainer: pl.Trainer, dataset: Any) -> Iterator[None]:
    """Explain an error of a dataset that is not indexed by whole numbers, as in torchgeo."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        drawn: Sequence[Any] = next(iter(own_batches(found_loader(trainer.train_dataloader))), [])
        if all(hasattr(index, "__index__") for index in drawn):
            raise  # a mistake of another kind
        raise InputError(
            f"A sample of the {type(dataset).__name__} could not be read as dataset[0] "
            f"({type(error).__name__}: {error}); if it is indexed in another way, give a view "
            "that lists its samples: CorruptionRanking(path, dataset=...)."
        ) from error
