"""A model as one traced function: what predicts, what is saved as a SavedModel, what the converter reads."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.lite import TFLiteSavedModelConverterV2

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import contract_pb2

SIGNATURE = "serving_default"


def shape_of(tensor: contract_pb2.TensorContract) -> tuple[int | None, ...]:
    """Gives a contract shape as TensorFlow writes it."""
    return tuple(None if size < 0 else size for size in tensor.shape)


class Served:
    """One function over tensors, traced when it is first needed.

    Args:
        call: the function; positional tensors in, flat list of tensors out.
        specs: of its arguments; their names become those of the signature.
        outputs: names of the results.
        variables: what the function reads.
        owner: tracks resources other than variables; saved along only where it must be.
    """

    def __init__(
        self,
        call: Callable[..., list[Any]],
        *,
        specs: Sequence[tf.TensorSpec],
        outputs: Sequence[str],
        variables: Sequence[Any],
        owner: Any = None,
    ) -> None:
        self._call, self._specs, self._outputs = call, list(specs), list(outputs)
        self._variables, self._owner = list(variables), owner
        self._function: Any = None
        self._folder: Path | None = None

    @property
    def function(self) -> Any:
        """The trace, a concrete function from positional tensors to a dict of named tensors."""
        if self._function is None:

            def serve(*tensors: Any) -> dict[str, Any]:
                # The same tensor under two names, or an input given back, must still be two results.
                results = [tf.identity(tensor) for tensor in self._call(*tensors)]
                return dict(zip(self._outputs, results, strict=True))

            self._function = tf.function(serve, autograph=False).get_concrete_function(*self._specs)
        return self._function

    def predict(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Gives the results for a batch of samples, in the order of `outputs`."""
        batch = next((spec.shape[0] for spec in self._specs if spec.shape.rank), None)
        return in_batches(lambda chunk: self._run(chunk), arrays, batch)

    def _run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        results = self.function(*[tf.constant(a, spec.dtype) for a, spec in zip(arrays, self._specs, strict=True)])
        return [results[name].numpy() for name in self._outputs]

    def save(self, folder: Path) -> None:
        """Writes the trace and its variables as a SavedModel with one signature."""
        module = tf.Module()
        module.variables_ = self._variables
        try:
            tf.saved_model.save(module, str(folder), signatures={SIGNATURE: self.function})
        except AssertionError:
            # Lookup tables and other resources belong to the model and are found only through it.
            module.owner = self._owner
            try:
                tf.saved_model.save(module, str(folder), signatures={SIGNATURE: self.function})
            except Exception as error:
                cause = str(error).splitlines()[0][:200]
                raise SqueezeflowError(
                    "UNSUPPORTED_LAYER",
                    f"a layer keeps state that cannot be saved ({cause}): replace lookup tables",
                ) from error

    def converter(self) -> Any:
        """Gives a fresh converter of the trace; the SavedModel that it reads is written once and removed at the end."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="squeezeflow-"))
            weakref.finalize(self, rmtree, self._folder, ignore_errors=True)
            self.save(self._folder)
        return converter_of(self._folder, SIGNATURE)


def converter_of(folder: Path, signature: str, tags: Collection[str] = ("serve",)) -> Any:
    """Gives a fresh converter of one signature of a SavedModel.

    What `TFLiteConverter.from_saved_model` gives, without loading the model once more just to see whether the signature
    is there.
    """
    return TFLiteSavedModelConverterV2(str(folder), set(tags), [signature])


def in_batches(
    run: Callable[[list[np.ndarray]], list[np.ndarray]], arrays: Sequence[np.ndarray], batch: int | None
) -> list[np.ndarray]:
    """Runs samples through a function whose batch axis is `batch` (None: free), and joins the results.

    A last, shorter batch is filled up with its last sample, whose results are cut off again.
    """
    count = min((len(array) for array in arrays if array.ndim), default=1)
    if batch is None or batch == count:
        return run(list(arrays))
    parts: list[list[np.ndarray]] = []
    for start in range(0, count, batch):
        rows = np.minimum(np.arange(start, start + batch), count - 1)
        parts.append(run([array[rows] if array.ndim else array for array in arrays]))
    joined = [np.concatenate(results, axis=0) for results in zip(*parts, strict=True)]
    return [array[:count] for array in joined]
