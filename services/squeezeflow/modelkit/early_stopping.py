"""Early stopping: a fit ends when its validation loss no longer improves, and goes back to the best epoch.

Unlike the callback of Keras it can be told from when on epochs count (a model that is pruned is not sparse before its
schedule has ended, however good it is), and what it has seen can be kept and taken up again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import tf_keras

from squeezeflow.core.datasets import BoundData
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import technique_pb2

WATCHED = "val_loss"


@dataclass(frozen=True)
class Watch:
    """What was seen so far.

    Attributes:
        epoch: the best one, from 1; 0: none counted yet.
        loss: its validation loss.
        waited: epochs since then.
        weights: all variables of the model after it.
    """

    epoch: int = 0
    loss: float = math.inf
    waited: int = 0
    weights: Sequence[npt.NDArray[Any]] = ()


@dataclass(frozen=True)
class Watched:
    """What early stopping looks at: how many train samples it takes away, and all of it for a person."""

    held_out: int
    note: str


def watch_rows(request: technique_pb2.FineTune, bound: BoundData, *, least: int) -> Watched:
    """Decides what is watched: the validation arrays, or a part of train by seed.

    Args:
        least: fewer samples than this cannot be evaluated.

    Errors: DATA_MISSING where there are not so many.
    """
    rows = bound.fit_rows(request.seed)
    count = len(rows.validation)
    if count < least:
        raise SqueezeflowError(
            "DATA_MISSING",
            f"early stopping needs at least {least} samples to watch and there are {count}: add x_validation and "
            "y_validation, or leave out fine_tune.patience",
            metadata={"split": "validation"},
        )
    own = rows.validation_split == "validation"
    what = "validation samples" if own else f"samples of train, drawn by seed {request.seed} and not trained on"
    rule = f"patience {request.patience}, min_delta {request.min_delta:g}"
    return Watched(0 if own else count, f"early stopping by the validation loss, {rule}: it watches {count} {what}")


class EarlyStopping(tf_keras.callbacks.Callback):
    """Ends the fit after `patience` epochs in a row that do not improve the validation loss by more than `min_delta`.

    Args:
        first_epoch: the first epoch that counts, from 1.
        watch: what an earlier part of the same fit has seen.
    """

    def __init__(self, *, patience: int, min_delta: float, first_epoch: int, watch: Watch) -> None:
        super().__init__()
        self.watch = watch
        self._patience, self._min_delta, self._first_epoch = patience, min_delta, first_epoch

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Compares the epoch with the best one."""
        if epoch + 1 < self._first_epoch:
            return
        loss = float((logs or {})[WATCHED])
        if loss < self.watch.loss - self._min_delta:
            self.watch = Watch(epoch + 1, loss, 0, self.model.get_weights())
            return
        self.watch = Watch(self.watch.epoch, self.watch.loss, self.watch.waited + 1, self.watch.weights)
        if self.watch.waited >= self._patience:
            self.model.stop_training = True

    def restore(self, model: tf_keras.Model, *, epoch: int, epochs: int) -> str:
        """Gives the model the weights of the best epoch, and a note about it.

        Args:
            epoch: how many epochs were done.
            epochs: how many there could have been.
        """
        watch = self.watch
        ended = f"stopped after epoch {epoch} of {epochs}" if epoch < epochs else f"not stopped in {epochs} epochs"
        if not watch.epoch:
            return f"early stopping: {ended}; no epoch has a finite validation loss, the weights are those of the last"
        model.set_weights(watch.weights)
        why = f"the validation loss did not improve for {watch.waited} epochs; " if epoch < epochs else ""
        before = f", epochs before {self._first_epoch} do not count" if self._first_epoch > 1 else ""
        return (
            f"early stopping: {ended}: {why}the weights are those of epoch {watch.epoch}, the best one "
            f"(validation loss {watch.loss:.4g}{before})"
        )
