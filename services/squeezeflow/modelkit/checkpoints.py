"""Checkpoints of a fit: when its state is written, and how a fit goes on from one, at the very next batch.

The order of batches and the draws of random layers follow from (seed, epoch), so a place in a fit is two numbers, and
the state is the variables. A fit that goes on gives the weights and figures of one that was never interrupted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tf_keras

from squeezeflow.core.step import Checkpoint
from squeezeflow.modelkit import fit_state
from squeezeflow.modelkit.early_stopping import EarlyStopping, Watch
from squeezeflow.modelkit.fit_state import FitState
from squeezeflow.modelkit.fit_variables import FitVariables

log = logging.getLogger(__name__)

# Of the time of a fit that goes into checkpoints, however large they are and however often they are wanted.
MOST_SHARE = 0.02


def resume(
    checkpoint: Checkpoint | None, variables: FitVariables, *, epochs: int, steps: int
) -> tuple[FitState | None, list[str]]:
    """Sets the variables of a fit to the state of an earlier run where there is one, and says so.

    What begins anew with every epoch is set by `CheckpointWriter`, when the epoch has begun. A state that is damaged,
    of another action or of another model is not used, which is said too.

    Args:
        epochs, steps: epochs of the fit, and batches of one.
    """
    if checkpoint is None or not checkpoint.path.exists():
        return None, []
    try:
        state = fit_state.read(checkpoint.path)
        if state.action != checkpoint.action:
            raise ValueError("it is of another step")
        variables.check(state.values, state.watch.weights)
        if not (0 <= state.epoch <= epochs and 0 <= state.batch < steps and (state.epoch < epochs or not state.batch)):
            raise ValueError("it is of a longer fit")
    except ValueError as error:
        return None, [f"the checkpoint of an earlier run was not used, {error}: the fit began anew"]
    variables.restore(state.values)
    return state, [f"resumed from {state.describe()}: an earlier run of this step was interrupted"]


@contextmanager
def beginning_at(model: tf_keras.Model, epoch: int, batch: int) -> Iterator[None]:
    """Lets the next `fit` of a model begin at a batch inside an epoch, as long as it lasts."""
    # What Keras asks when it recovers a worker of a cluster; nothing else can begin inside an epoch.
    model._training_state = _Begin(epoch, batch)
    try:
        yield
    finally:
        model._training_state = None


class _Begin:
    def __init__(self, epoch: int, batch: int) -> None:
        self._begin = epoch, batch

    def maybe_load_initial_counters_from_ckpt(self, steps: int, epoch: int, mode: Any) -> tuple[int, int]:
        return self._begin


class CheckpointWriter(tf_keras.callbacks.Callback):
    """Keeps the figures of every epoch and, when it is time, the state of the fit. Comes last of all.

    Args:
        checkpoint: where to; None: only the figures are kept.
        variables: of the fit.
        epochs, steps: epochs of the fit, and batches of one.
        stopping: whose view of the fit belongs to the state.
        state: where the fit goes on; None: it begins.

    A model with state that no checkpoint holds has checkpoints at the ends of epochs only.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        variables: FitVariables,
        *,
        epochs: int,
        steps: int,
        stopping: EarlyStopping | None,
        state: FitState | None,
    ) -> None:
        super().__init__()
        # Keras would otherwise turn the figures of every batch into numpy, which waits for the batch.
        self._supports_tf_logs = True
        self.history = {name: list(values) for name, values in state.history.items()} if state else {}
        self._problem = ""
        self._unkept: tuple[str, ...] = ()
        self._checkpoint, self._variables, self._stopping, self._state = checkpoint, variables, stopping, state
        self._epochs, self._steps = epochs, steps
        self._epoch = 0
        self._looked = False
        self._due = time.monotonic() + (checkpoint.seconds if checkpoint else 0.0)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets what an interrupted epoch had come to."""
        self._epoch = epoch
        if self._state is not None and self._state.batch and epoch == self._state.epoch:
            self._variables.restore(self._state.values, within_epoch=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Writes the state when it is time; that of an epoch's last batch waits for the epoch's end."""
        if self._checkpoint is None:
            return
        if not self._looked:
            self._looked, self._unkept = True, self._variables.unkept()
        done = batch + 1
        if done < self._steps and self._checkpoint.seconds and not self._unkept and time.monotonic() >= self._due:
            self._write(self._checkpoint, self._epoch, done, ended=False)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Notes the figures; writes the state when it is time."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        if self._checkpoint is not None and time.monotonic() >= self._due:
            ended = epoch + 1 == self._epochs or self.model.stop_training
            self._write(self._checkpoint, epoch + 1, 0, ended=ended)

    def notes(self, *, resumed: bool) -> list[str]:
        """Gives what went wrong with checkpoints, for a person."""
        notes = [f"a checkpoint could not be written: {self._problem}"] if self._problem else []
        if resumed and self._unkept:
            notes.append(
                "the training may differ from an uninterrupted one, no checkpoint holds all that it depends on: "
                + ", ".join(self._unkept)
            )
        return notes

    def _write(self, checkpoint: Checkpoint, epoch: int, batch: int, *, ended: bool) -> None:
        values = self._variables.values()
        began = time.monotonic()  # until here the batch itself was waited for
        watch = self._stopping.watch if self._stopping else Watch()
        state = FitState(checkpoint.action, epoch, batch, self.history, values, watch, ended)
        try:
            fit_state.write(checkpoint.path, state)
        except OSError as error:
            # A full disk costs the checkpoint, not the training.
            self._problem = str(error.strerror or error)
            log.warning("a checkpoint cannot be written: %s", self._problem)
        else:
            self._problem = ""
            checkpoint.saved()
        now = time.monotonic()
        self._due = now + (max(checkpoint.seconds, (now - began) / MOST_SHARE) if checkpoint.seconds else 0.0)
