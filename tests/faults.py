"""Data sources that fail on purpose, for `data.source._target_=faults.splits`."""

import os
import signal

from coseg_lightning.data.folder import Splits
from support import Squares


class Failing(Squares):
    """Raises an error or kills the process once the process of `rank` has read `after` images."""

    def __init__(self, size, fault, after, rank):
        super().__init__(size)
        self.fault, self.left, self.rank = fault, after, rank

    def image(self, index):
        if os.environ.get("LOCAL_RANK", "0") == str(self.rank):
            self.left -= 1
        if self.left < 0 and self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.left < 0:
            raise RuntimeError("the scanner is on fire")
        return super().image(index)


def splits(fault, after, rank=0, size=12):
    """Return `size` squares for training, and four for the test."""
    return Splits(Failing(size, fault, after, rank), None, Squares(4, name="t"))
