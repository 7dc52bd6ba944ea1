"""The state of a fit as one file: everything that the rest of the fit depends on, and nothing of the process.

The file is a line with the SHA-256 of what follows, then an `.npz` without pickled objects. It is written beside its
place and moved there, so that a process which dies meanwhile leaves the older state.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from squeezeflow.modelkit.early_stopping import Watch

Arrays = Sequence[npt.NDArray[Any]]
_MAGIC = b"squeezeflow fit state 2 "
_HEADER_BYTES = len(_MAGIC) + 64 + 1
_BEST = "best"


@dataclass(frozen=True)
class FitState:
    """A fit between two batches.

    Attributes:
        action: digest of the action that the fit belongs to.
        epoch: how many epochs are done.
        batch: how many batches of the next one are done.
        history: figures by Keras name, one an epoch that is done.
        values: of all variables, by group and in order; see `FitVariables`.
        watch: what early stopping has seen.
        ended: no further epoch follows.
    """

    action: str
    epoch: int
    batch: int
    history: Mapping[str, Sequence[float]]
    values: Mapping[str, Arrays]
    watch: Watch
    ended: bool

    def describe(self) -> str:
        """Gives where the fit was, for a person."""
        return f"batch {self.batch} of epoch {self.epoch + 1}" if self.batch else f"epoch {self.epoch}"


def write(path: Path, state: FitState) -> None:
    """Writes a state, whole or not at all."""
    about = {
        "action": state.action,
        "epoch": state.epoch,
        "batch": state.batch,
        "ended": state.ended,
        "history": {name: list(values) for name, values in state.history.items()},
        "watch": [state.watch.epoch, state.watch.loss, state.watch.waited],
        "groups": {group: len(values) for group, values in state.values.items()},
    }
    arrays: dict[str, npt.NDArray[Any]] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for group, values in (*state.values.items(), (_BEST, state.watch.weights)):
        arrays.update({f"{group}.{index}": np.asarray(array) for index, array in enumerate(values)})
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w+b") as file:
            file.write(bytes(_HEADER_BYTES))
            np.savez(file, **arrays)  # type: ignore[arg-type]  # names are keywords
            file.seek(_HEADER_BYTES)
            digest = _digest(file)
            file.seek(0)
            file.write(_MAGIC + digest.encode() + b"\n")
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)  # half a state would keep the disk full
        raise


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
            about = json.loads(arrays.pop("about").tobytes())
            epoch, loss, waited = about["watch"]
            groups = {
                str(group): [arrays.pop(f"{group}.{i}") for i in range(n)] for group, n in about["groups"].items()
            }
            best = [arrays[f"{_BEST}.{index}"] for index in range(len(arrays))]
            return FitState(
                action=str(about["action"]),
                epoch=int(about["epoch"]),
                batch=int(about["batch"]),
                history={str(name): [float(value) for value in each] for name, each in about["history"].items()},
                values=groups,
                watch=Watch(int(epoch), float(loss), int(waited), best),
                ended=bool(about["ended"]),
            )
        except (OSError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError("it is no state of a fit") from error


def _digest(file: BinaryIO | io.BufferedRandom) -> str:
    """Gives the SHA-256 of the rest of a file."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
