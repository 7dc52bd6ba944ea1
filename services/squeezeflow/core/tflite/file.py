"""One TFLite file: its structure at once, its statistics when they are asked for."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.tflite.arena import arena_peak_bytes
from squeezeflow.core.tflite.arithmetic import arithmetic, computing_operator, output_step
from squeezeflow.core.tflite.explain import Explainer
from squeezeflow.core.tflite.flatbuffer import MalformedError, is_flex, read_contents
from squeezeflow.core.tflite.layout import Signature, Subgraph, Tensor
from squeezeflow.core.tflite.macs import macs, total_macs
from squeezeflow.core.tflite.values import FLOATS, Array, constant_values, stored_values
from squeezeflow.core.tflite.weights import Weight, count_zeros, weights_of
from squeezeflow.v1 import model_pb2

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class TfliteFile:
    """A TFLite file that was read whole; indices are those of its main graph unless a graph is named."""

    path: Path
    size: int
    subgraphs: tuple[Subgraph, ...] = field(repr=False)
    signatures: tuple[Signature, ...]

    @classmethod
    def read(cls, path: Path) -> TfliteFile:
        """Reads a file. Errors: MALFORMED_MODEL, whatever the bytes."""
        data = path.read_bytes()
        try:
            contents = read_contents(data)
        except MalformedError as error:
            raise SqueezeflowError(
                "MALFORMED_MODEL",
                f"{path.name} cannot be read as TFLite, {error}: convert the model again",
            ) from error
        return cls(path, len(data), contents.subgraphs, contents.signatures)

    @property
    def main(self) -> Subgraph:
        """The graph that is invoked."""
        return self.subgraphs[0]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Tensor indices of the inputs. Their order need not be that of any signature."""
        return self.main.inputs

    @property
    def outputs(self) -> tuple[int, ...]:
        """Tensor indices of the outputs. Their order need not be that of any signature."""
        return self.main.outputs

    @property
    def signature(self) -> Signature | None:
        """The signature of the main graph, `serving_default` before others; None where it has none."""
        own = [signature for signature in self.signatures if signature.subgraph == 0]
        return next((signature for signature in own if signature.key == DEFAULT_SIGNATURE), own[0] if own else None)

    @property
    def input_names(self) -> dict[str, int]:
        """Tensor indices by input name: of the signature, where there is none by the tensors' own names."""
        return dict(self.signature.inputs) if self.signature else self._tensor_names(self.inputs)

    @property
    def output_names(self) -> dict[str, int]:
        """Tensor indices by output name, as `input_names`."""
        return dict(self.signature.outputs) if self.signature else self._tensor_names(self.outputs)

    def _tensor_names(self, indices: tuple[int, ...]) -> dict[str, int]:
        names: dict[str, int] = {}
        for index in indices:
            name = self.main.tensors[index].name
            # Nothing keeps a writer from giving one name twice.
            names[f"{name}_{index}" if name in names or not name else name] = index
        return names

    @property
    def custom_ops(self) -> tuple[str, ...]:
        """Names of custom operators in any graph, Flex ones too, each once."""
        found = {operator.name for graph in self.subgraphs for operator in graph.operators if operator.custom}
        return tuple(sorted(found))

    @property
    def flex_ops(self) -> tuple[str, ...]:
        """Names of operators that need TensorFlow's own kernels, each once."""
        return tuple(name for name in self.custom_ops if is_flex(name))

    @property
    def stateful(self) -> bool:
        """Whether any tensor keeps its value between invocations."""
        return any(tensor.variable for graph in self.subgraphs for tensor in graph.tensors)

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """The weights of all graphs."""
        return tuple(weight for number, graph in enumerate(self.subgraphs) for weight in weights_of(graph, number))

    @cached_property
    def parameters(self) -> int:
        """Number of weights, biases and table entries: floats and quantized numbers, each constant once."""
        constants = {
            id(tensor.buffer): tensor.size
            for graph in self.subgraphs
            for operator in graph.operators
            for tensor in (graph.tensors[index] for index in operator.inputs if index >= 0)
            if tensor.constant and (tensor.dtype in FLOATS or tensor.scales)
        }
        return sum(constants.values())

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one invocation: free axes count as 1, bodies of loops once."""
        return total_macs(self._invoked)

    @cached_property
    def arena_peak_bytes(self) -> int:
        """Peak of the memory for activations, as LiteRT plans it without delegates; see `arena`."""
        return sum(arena_peak_bytes(graph) for graph in self._invoked)

    @property
    def accounting_notes(self) -> list[str]:
        """What `macs` and `arena_peak_bytes` leave out for this file."""
        free = [name for name, index in self.input_names.items() if -1 in self.main.tensors[index].shape[1:]]
        notes = [f"macs and arena_peak_bytes count the free axes of {', '.join(free)} as 1"] if free else []
        return notes + (["macs count the bodies of loops once"] if len(self._invoked) > 1 else [])

    @property
    def _invoked(self) -> tuple[Subgraph, ...]:
        """The main graph and the bodies of loops and conditions: graphs of other signatures are not invoked with it."""
        apart = {signature.subgraph for signature in self.signatures} - {0}
        return tuple(graph for number, graph in enumerate(self.subgraphs) if number not in apart)

    def data(self, index: int) -> Array | None:
        """Gives the values of a constant in its shape; None where it is computed, sparse, or not numbers."""
        return constant_values(self.main.tensors[index])

    def output_step(self, index: int) -> float:
        """Gives the smallest difference that an output can show; 0 where it is computed in floats."""
        return output_step(self.main, index)

    def computing_operator(self, index: int) -> str:
        """Gives the operator that computes a tensor, beyond QUANTIZE, DEQUANTIZE and RESHAPE; empty for an input."""
        return computing_operator(self.main, index)

    def layer_of(self, tensor: Tensor, subgraph: int = 0) -> str:
        """Names the Keras layer that a tensor belongs to, as far as names tell; empty where they do not."""
        return self._explainers[subgraph].layer_of_tensor(tensor)

    @cached_property
    def _explainers(self) -> tuple[Explainer, ...]:
        return tuple(Explainer(graph) for graph in self.subgraphs)

    @cached_property
    def tensors(self) -> Sequence[model_pb2.TensorDescription]:
        """Tensors of the main graph with their statistics, each worked out when it is first looked at."""
        return _Descriptions(self)

    @cached_property
    def operators(self) -> list[model_pb2.OperatorDescription]:
        """Operators of the main graph in execution order."""
        explainer = self._explainers[0]
        return [
            model_pb2.OperatorDescription(
                index=operator.index,
                name=operator.name,
                inputs=operator.inputs,
                outputs=operator.outputs,
                arithmetic=arithmetic(operator, self.main),
                reason=explainer.reason(operator),
                layer=explainer.layer(operator),
                macs=macs(operator, self.main),
            )
            for operator in self.main.operators
        ]


class _Descriptions(Sequence[model_pb2.TensorDescription]):
    """Describes tensors one by one: whoever looks at inputs and outputs does not deflate all weights."""

    def __init__(self, file: TfliteFile) -> None:
        self._tensors = file.main.tensors
        self._axes = {weight.tensor.index: weight.channel_axis for weight in file.weights if weight.subgraph == 0}
        self._file = file
        self._done: dict[int, model_pb2.TensorDescription] = {}

    def __len__(self) -> int:
        return len(self._tensors)

    @overload
    def __getitem__(self, index: int) -> model_pb2.TensorDescription: ...
    @overload
    def __getitem__(self, index: slice) -> list[model_pb2.TensorDescription]: ...
    def __getitem__(self, index: int | slice) -> model_pb2.TensorDescription | list[model_pb2.TensorDescription]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        tensor = self._tensors[index]
        if tensor.index not in self._done:
            description = _describe(tensor, self._axes.get(tensor.index))
            description.layer = self._file.layer_of(tensor)
            self._done[tensor.index] = description
        return self._done[tensor.index]


def _describe(tensor: Tensor, axis: int | None) -> model_pb2.TensorDescription:
    description = model_pb2.TensorDescription(
        index=tensor.index,
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        scales=tensor.scales,
        zero_points=tensor.zero_points,
        quantized_dimension=tensor.quantized_dimension,
        block_size=tensor.block_size,
        constant=tensor.constant,
    )
    if tensor.buffer is None:
        return description
    description.raw_bytes = len(tensor.buffer)
    description.deflated_bytes = len(zlib.compress(tensor.buffer, 9))
    stored = stored_values(tensor)
    if stored is None or not tensor.size:
        return description
    description.sparsity = count_zeros(tensor) / tensor.size
    # A sparse tensor's left-out blocks are one more value: zero.
    left_out = tensor.sparse and tensor.size > stored.size and not np.any(stored == 0)
    description.unique_values = _largest_unique_count(stored[None, : tensor.size], 0) + left_out
    values = constant_values(tensor)
    description.unique_values_per_channel = (
        description.unique_values if values is None or axis is None else _largest_unique_count(values, axis)
    )
    return description


def _largest_unique_count(values: Array, axis: int) -> int:
    """Gives the largest number of distinct values along one slice of an axis."""
    channels = np.moveaxis(values, axis, 0)
    rows = channels.reshape(channels.shape[0], -1)
    # numpy 2.4 sorts float16 wrong where values repeat (seen on AVX-512); float32 holds every one of them.
    ordered = np.sort(rows.astype(np.float32) if rows.dtype == np.float16 else rows, axis=1)
    if not ordered.size:
        return 0
    return int((ordered[:, 1:] != ordered[:, :-1]).sum(axis=1).max()) + 1
