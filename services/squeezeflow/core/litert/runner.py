"""Samples through a TFLite file: bound by contract names, in batches where the graph allows it.

A batch is trusted only after it gave, once, what its samples give alone: a RESHAPE with a fixed size fails, but an
operation over the batch axis runs and mixes samples. Graphs that keep state see one sample at a time, from a clean
state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert.binding import bind, flex_refusal, require_fit, to_file
from squeezeflow.core.litert.interpreter import AllocationError, Interpreter, prepare_error
from squeezeflow.core.litert.quantization import dequantize, is_quantized
from squeezeflow.core.tflite import Tensor, TfliteFile
from squeezeflow.core.tflite.values import ELEMENT_BITS
from squeezeflow.v1 import contract_pb2

Array = npt.NDArray[Any]

# More samples at once gain little.
BATCH_LIMIT = 64
# Bound on the activations of a batch, counted as if none were ever freed.
BATCH_BYTES = 128 << 20
# How far the outputs of a batch may be from those of its samples alone: other kernels, other order of sums.
BATCH_TOLERANCE = 1e-4


class Runner:
    """One TFLite file and its contract, ready to run; use one per thread.

    Attributes:
        file: what was read of the file.
        threads: of the interpreter.
        batch: most samples that went through one invocation and were trusted.
    """

    def __init__(self, path: Path, contract: contract_pb2.Contract, *, threads: int = 1) -> None:
        """Reads the file, binds names and prepares the graph where its shapes are known.

        Errors: MALFORMED_MODEL (also a contract of another file), UNSUPPORTED_OP naming the operators,
        UNSUPPORTED_INPUT for strings.
        """
        self.file = TfliteFile.read(path)
        self.threads = threads
        if self.file.flex_ops:
            raise flex_refusal(self.file)
        self._inputs = bind(self.file, contract.inputs, self.file.input_names, self.file.inputs, "input")
        self._outputs = bind(self.file, contract.outputs, self.file.output_names, (), "output")
        self._interpreter = Interpreter(path, threads=threads)
        # The batch that the file was built for; a free one counts as 1.
        own_batches = {tensor.stored_shape[0] if tensor.shape else None for tensor in self._inputs.values()}
        self._has_batch = len(own_batches) == 1 and None not in own_batches
        self._own_batch = (own_batches.pop() or 1) if self._has_batch else 1
        self.batch = self._own_batch
        self._batches = not self.file.stateful
        self._batches_proved = False
        if all(size >= 0 for tensor in self._inputs.values() for size in tensor.shape[1:]):
            self._prepare({tensor.index: tensor.stored_shape for tensor in self._inputs.values()})

    @property
    def delegate(self) -> str:
        """`xnnpack`, or `none` where only LiteRT's own kernels run the file."""
        return self._interpreter.delegate

    @property
    def output_steps(self) -> dict[str, float]:
        """The smallest difference that each output can show, by contract name; 0 where it is computed in floats."""
        return {name: self.file.output_step(tensor.index) for name, tensor in self._outputs.items()}

    def invoke(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Gives real-valued outputs by contract name for n samples along axis 0.

        Args:
            inputs: by contract name; real values, or already in the file's element type.
        Errors: DATA_MISMATCH (names, shapes, dtypes, ids outside a table), UNSUPPORTED_OP.
        """
        self._require_names(inputs)
        raw = {name: to_file(np.asarray(inputs[name]), tensor, name) for name, tensor in self._inputs.items()}
        outputs = self.invoke_raw(raw)
        return {
            name: dequantize(outputs[name], tensor) if is_quantized(tensor) else outputs[name]
            for name, tensor in self._outputs.items()
        }

    def invoke_raw(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Gives outputs in the file's element types for inputs in them; otherwise as `invoke`."""
        self._require_names(inputs)
        arrays = {name: np.asarray(inputs[name]) for name in self._inputs}
        for name, tensor in self._inputs.items():
            require_fit(arrays[name], tensor, name)
        if not self._has_batch:
            return self._run(arrays)
        count = _common_count(arrays)
        parts = [self._run_part(_rows(arrays, part)) for part in _slices(count, self._part_size(arrays, count))]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _part_size(self, arrays: Mapping[str, Array], count: int) -> int:
        if not self._batches:
            return self._own_batch
        # Free axes are 1 in the file: activations grow with the input.
        given = sum(value.size for value in arrays.values()) / count
        stored = sum(tensor.size for tensor in self._inputs.values()) / self._own_batch
        sample_bytes = self._activation_bytes() / self._own_batch * given / max(1.0, stored)
        return max(self._own_batch, min(BATCH_LIMIT, int(BATCH_BYTES / max(1.0, sample_bytes))))

    def _activation_bytes(self) -> float:
        computed = [tensor for tensor in self.file.main.tensors if not tensor.constant]
        return sum(tensor.size * ELEMENT_BITS.get(tensor.dtype, 32) / 8 for tensor in computed)

    def _run_part(self, arrays: dict[str, Array]) -> dict[str, Array]:
        count = _common_count(arrays)
        if self._batches and count != self._own_batch:
            outputs = self._try_batch(arrays, count)
            if outputs is not None:
                self.batch = max(self.batch, count)
                return outputs
        results = [self._run_own_batch(_rows(arrays, part)) for part in _slices(count, self._own_batch)]
        # Where these failed too, the data is at fault and not the batch.
        self._batches = self._batches and count == self._own_batch
        return {name: np.concatenate([result[name] for result in results]) for name in self._outputs}

    def _try_batch(self, arrays: dict[str, Array], count: int) -> dict[str, Array] | None:
        """Runs a batch of another size than the file's; None where the graph does not take it or mixes its samples."""
        try:
            outputs = self._run(arrays)
        except (AllocationError, SqueezeflowError):
            # At the file's own batch the same error, if it is one, comes back and is reported.
            return None
        if any(value.ndim == 0 or value.shape[0] != count for value in outputs.values()):
            return None
        if not self._batches_proved:
            for row in {0, count - 1}:
                alone = self._run_own_batch(_rows(arrays, slice(row, row + 1)))
                if not all(_same(outputs[name][row : row + 1], alone[name], self._outputs[name]) for name in outputs):
                    return None
            self._batches_proved = True
        return outputs

    def _run_own_batch(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Runs up to the file's own batch of samples; where there are fewer, the last one is repeated."""
        count = _common_count(arrays)
        missing = self._own_batch - count
        if missing:
            arrays = {name: np.concatenate([value, *[value[-1:]] * missing]) for name, value in arrays.items()}
        outputs = self._run(arrays)
        return {
            # An output without a batch axis belongs to the one sample it was computed from.
            name: value[:count] if value.ndim and value.shape[0] == self._own_batch else value[np.newaxis]
            for name, value in outputs.items()
        }

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        tensors = {self._inputs[name].index: value for name, value in arrays.items()}
        outputs = [tensor.index for tensor in self._outputs.values()]
        own_axes = all(self._inputs[name].shape[1:] == value.shape[1:] for name, value in arrays.items())
        try:
            values = self._interpreter.run(tensors, outputs, reset=self.file.stateful)
        except AllocationError as error:
            if own_axes and _common_count(arrays) != self._own_batch:
                raise
            raise self._refusal(str(error), arrays, own_axes=own_axes) from error
        return dict(zip(self._outputs, values, strict=True))

    def _prepare(self, shapes: dict[int, tuple[int, ...]]) -> None:
        try:
            self._interpreter.allocate(shapes)
        except AllocationError as error:
            raise prepare_error(self.file.path, str(error)) from error

    def _refusal(self, text: str, arrays: Mapping[str, Array], *, own_axes: bool) -> SqueezeflowError:
        refusal = prepare_error(self.file.path, text)
        if own_axes or "unresolved" in text:
            return refusal
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in arrays.items())
        return SqueezeflowError(
            "DATA_MISMATCH",
            f"{self.file.path.name} does not run on {shapes} ({refusal.metadata['litert']}): give other sizes along "
            "the free axes",
            metadata=refusal.metadata,
        )

    def _require_names(self, inputs: Mapping[str, Array]) -> None:
        if set(inputs) != set(self._inputs):
            raise SqueezeflowError(
                "DATA_MISMATCH",
                f"the model takes {', '.join(self._inputs)} and was given {', '.join(inputs) or 'nothing'}",
            )


def _common_count(arrays: Mapping[str, Array]) -> int:
    counts = {name: value.shape[0] if value.ndim else 1 for name, value in arrays.items()}
    if len(set(counts.values())) > 1:
        raise SqueezeflowError(
            "DATA_MISMATCH",
            f"inputs have different numbers of samples: {', '.join(f'{k} {v}' for k, v in counts.items())}",
        )
    return next(iter(counts.values()))


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _rows(arrays: Mapping[str, Array], rows: slice) -> dict[str, Array]:
    return {name: value[rows] for name, value in arrays.items()}


def _same(batched: Array, alone: Array, tensor: Tensor) -> bool:
    if batched.shape != alone.shape:
        return False
    if batched.dtype.kind == "f":
        limit = BATCH_TOLERANCE * max(1.0, float(np.abs(np.nan_to_num(alone)).max(initial=0.0)))
        return bool(np.allclose(batched, alone, rtol=0, atol=limit, equal_nan=True))
    step = 1 if is_quantized(tensor) else 0
    return bool((np.abs(batched.astype(np.int64) - alone.astype(np.int64)) <= step).all())
