"""The state of a fit as one file: everything that the rest of the fit depends on, and nothing of the process.

The file is a line with the SHA-256 of what follows, then an `.npz` without pickled objects. It is written beside its
place and moved there, so that a process which dies meanwhile leaves the older state.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tf_keras

from squeezeflow.core.step import Checkpoint
from squeezeflow.modelkit.early_stopping import EarlyStopping, Watch

Arrays = Sequence[npt.NDArray[Any]]
_MAGIC = b"squeezeflow fit state 1 "
_HEADER_BYTES = len(_MAGIC) + 64 + 1


@dataclass(frozen=True)
class FitState:
    """A fit between two epochs.

    Attributes:
        epoch: how many epochs are done.
        history: figures by Keras name, one an epoch.
        weights: all variables of the model, those of wrappers too, in its order.
        optimizer: all variables of the optimizer, in its order.
        watch: what early stopping has seen.
        ended: no further epoch follows.
    """

    epoch: int
    history: Mapping[str, Sequence[float]]
    weights: Arrays
    optimizer: Arrays
    watch: Watch
    ended: bool

    def check_fits(self, model: tf_keras.Model) -> None:
        """Makes sure that the state is one of this model with this optimizer.

        Errors: ValueError that says what differs.
        """
        places: list[tuple[str, Arrays, Arrays]] = [
            ("weights", self.weights, model.weights),
            ("optimizer variables", self.optimizer, _variables(model.optimizer)),
        ]
        if self.watch.weights:
            places.append(("best weights", self.watch.weights, model.weights))
        for what, arrays, variables in places:
            found = [(array.shape, str(array.dtype)) for array in arrays]
            wanted = [(tuple(variable.shape), variable.dtype.name) for variable in variables]
            if found != wanted:
                raise ValueError(f"its {what} are not those of the model")

    def restore(self, model: tf_keras.Model) -> None:
        """Gives a compiled model, its optimizer built, this state."""
        model.set_weights(self.weights)
        for variable, array in zip(_variables(model.optimizer), self.optimizer, strict=True):
            variable.assign(array)


def write(path: Path, state: FitState) -> None:
    """Writes a state, whole or not at all."""
    about = {
        "epoch": state.epoch,
        "ended": state.ended,
        "history": {name: list(values) for name, values in state.history.items()},
        "watch": [state.watch.epoch, state.watch.loss, state.watch.waited],
    }
    arrays: dict[str, npt.NDArray[Any]] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for kind, group in (("weight", state.weights), ("optimizer", state.optimizer), ("best", state.watch.weights)):
        arrays.update({f"{kind}.{index}": np.asarray(array) for index, array in enumerate(group)})
    part = path.with_name(f"{path.name}.part")
    with part.open("w+b") as file:
        file.write(bytes(_HEADER_BYTES))
        np.savez(file, **arrays)  # type: ignore[arg-type]  # names are keywords
        file.seek(_HEADER_BYTES)
        digest = _digest(file)
        file.seek(0)
        file.write(_MAGIC + digest.encode() + b"\n")
    os.replace(part, path)


def read(path: Path) -> FitState:
    """Reads a state.

    Errors: ValueError when the file is not exactly what `write` wrote.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        if header != _MAGIC + _digest(file).encode() + b"\n":
            raise ValueError("it is damaged")
        file.seek(_HEADER_BYTES)
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
            about = json.loads(arrays["about"].tobytes())
            epoch, loss, waited = about["watch"]
            watch = Watch(int(epoch), float(loss), int(waited), _group(arrays, "best"))
            history = {str(name): [float(value) for value in values] for name, values in about["history"].items()}
            return FitState(
                int(about["epoch"]),
                history,
                _group(arrays, "weight"),
                _group(arrays, "optimizer"),
                watch,
                bool(about["ended"]),
            )
        except (OSError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError("it is no state of a fit") from error


def resume(model: tf_keras.Model, checkpoint: Checkpoint | None) -> tuple[FitState | None, list[str]]:
    """Gives a compiled model, its optimizer built, the state of an earlier run where there is one, and says so.

    A state that is damaged or of another model is not used, which is said too.
    """
    if checkpoint is None or not checkpoint.path.exists():
        return None, []
    try:
        state = read(checkpoint.path)
        state.check_fits(model)
    except ValueError as error:
        return None, [f"the checkpoint of an earlier run was not used, {error}: the fit began anew"]
    state.restore(model)
    return state, [f"resumed from epoch {state.epoch}: an earlier run of this step was interrupted"]


class CheckpointWriter(tf_keras.callbacks.Callback):
    """Keeps the figures of every epoch and, where it may, the state at the end of an epoch. Comes last of all.

    Args:
        checkpoint: where to; None: only the figures are kept.
        epochs: length of the fit.
        stopping: whose view of the fit belongs to the state.
        history: figures of the epochs before.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        epochs: int,
        stopping: EarlyStopping | None,
        history: Mapping[str, Sequence[float]],
    ) -> None:
        super().__init__()
        self.history = {name: list(values) for name, values in history.items()}
        self._checkpoint, self._epochs, self._stopping = checkpoint, epochs, stopping
        self._last = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Notes the figures; writes the state when it is time."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        if self._checkpoint is None or time.monotonic() - self._last < self._checkpoint.seconds:
            return
        state = FitState(
            epoch + 1,
            self.history,
            self.model.get_weights(),
            [variable.numpy() for variable in _variables(self.model.optimizer)],
            self._stopping.watch if self._stopping else Watch(),
            epoch + 1 == self._epochs or self.model.stop_training,
        )
        write(self._checkpoint.path, state)
        self._last = time.monotonic()
        self._checkpoint.saved()


def _variables(optimizer: tf_keras.optimizers.Optimizer) -> list[Any]:
    """Gives all variables of an optimizer: Nadam has one that it does not list."""
    hidden = getattr(optimizer, "_u_product", None)
    return [*optimizer.variables, *([] if hidden is None else [hidden])]


def _group(arrays: Mapping[str, npt.NDArray[Any]], kind: str) -> list[npt.NDArray[Any]]:
    count = sum(name.startswith(f"{kind}.") for name in arrays)
    return [arrays[f"{kind}.{index}"] for index in range(count)]


def _digest(file: BinaryIO | io.BufferedRandom) -> str:
    """Gives the SHA-256 of the rest of a file."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
