"""Every tensor of one invocation, for finding out where an output went wrong.

LiteRT reuses the memory of tensors and delegates hide theirs: here all are kept, and its own kernels run. That costs
the activations of one sample, which are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.invariants.origins import Key, Node
from squeezeflow.core.litert.binding import bind, to_file
from squeezeflow.core.litert.quantization import dequantize, is_quantized
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.core.tflite.values import ELEMENT_BITS
from squeezeflow.v1 import contract_pb2

Array = npt.NDArray[Any]

# Bound on the activations that are kept.
TRACE_BYTES = 1 << 30


class UntraceableError(Exception):
    """A file cannot be looked into; says why."""


class Trace:
    """What the tensors of a file's main graph held after one sample.

    Args:
        sample: real values by contract name, one along axis 0 where the file has such an axis.

    Errors: UntraceableError.
    """

    def __init__(
        self,
        file: TfliteFile,
        contract: contract_pb2.Contract,
        sample: Mapping[str, Array],
        *,
        threads: int = 1,
    ) -> None:
        from ai_edge_litert import interpreter as litert

        self.file = file
        inputs = bind(file, contract.inputs, file.input_names, file.inputs, "input")
        outputs = bind(file, contract.outputs, file.output_names, (), "output")
        self.outputs = {name: tensor.index for name, tensor in outputs.items()}
        values = {t.index: filled(to_file(np.asarray(sample[n]), t, n), t.shape) for n, t in inputs.items()}
        needed = _activation_bytes(file, values)
        if needed > TRACE_BYTES:
            raise UntraceableError(f"its activations take {needed >> 20} MiB")
        try:
            self._interpreter: Any = litert.Interpreter(
                model_path=str(file.path),
                num_threads=threads,
                experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
            )
            for index, value in values.items():
                self._interpreter.resize_tensor_input(index, value.shape)
            self._interpreter.allocate_tensors()
            for index, value in values.items():
                self._interpreter.set_tensor(index, value)
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise UntraceableError(f"LiteRT does not run it without XNNPACK ({str(error)[:200]})") from error

    def value(self, index: Any) -> Array | None:
        """Gives what a tensor held, as real values; None where it holds no numbers, or was not computed."""
        tensor = self.file.main.tensors[index]
        if tensor.dtype not in ELEMENT_BITS:
            return None
        try:
            held = np.asarray(self._interpreter.get_tensor(index))
        except (RuntimeError, ValueError):
            return None
        return dequantize(held, tensor) if is_quantized(tensor) else held

    def like(self, nodes: Sequence[Node]) -> dict[Key, list[Array]]:
        """Gives, by node of another file, what the computed tensors of its name held."""
        named = {tensor.name: tensor.index for tensor in self.file.main.tensors if not tensor.constant}
        values = {node.key: self.value(named[node.tensor]) for node in nodes if node.tensor in named}
        return {key: [value] for key, value in values.items() if value is not None}


def filled(values: Array, shape: tuple[int, ...]) -> Array:
    """Repeats one sample up to a fixed batch."""
    batch = shape[0] if shape and values.ndim == len(shape) else -1
    return np.repeat(values, batch, axis=0) if batch > 1 and len(values) == 1 else values


def _activation_bytes(file: TfliteFile, inputs: Mapping[int, Array]) -> int:
    # Free axes are 1 in the file: activations grow with the input.
    growth = [value.size / max(1, file.main.tensors[index].size) for index, value in inputs.items()]
    computed = (tensor for tensor in file.main.tensors if not tensor.constant)
    stored = sum(tensor.size * ELEMENT_BITS.get(tensor.dtype, 32) // 8 for tensor in computed)
    return int(stored * max(1.0, *growth, 1.0))
