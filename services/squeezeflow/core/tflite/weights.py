"""Which constants are weights: of which operator, and along which axis their output channels run.

A weight may reach its operator through DEQUANTIZE (float16) or DENSIFY (sparse) at load time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from squeezeflow.core.tflite.layout import Operator, Subgraph, Tensor
from squeezeflow.core.tflite.values import Array, constant_values, stored_values

# Operator → (places of its weights among its inputs, axis of the output channels in them).
# LSTM: four input-to-gate, four recurrent-to-gate matrices, the projection; rows are units.
LSTM_WEIGHTS = (*range(1, 9), 16)
BIDIRECTIONAL_LSTM_WEIGHTS = (*range(1, 9), 15, *range(18, 26), 32, *range(40, 48))
WEIGHTS: dict[str, tuple[tuple[int, ...], int]] = {
    "CONV_2D": ((1,), 0),
    "DEPTHWISE_CONV_2D": ((1,), 3),
    "FULLY_CONNECTED": ((1,), 0),
    "TRANSPOSE_CONV": ((1,), 0),
    "CONV_3D": ((1,), 4),
    "CONV_3D_TRANSPOSE": ((1,), 3),
    "BATCH_MATMUL": ((0, 1), -1),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (LSTM_WEIGHTS, 0),
    "LSTM": (LSTM_WEIGHTS, 0),
    "BIDIRECTIONAL_SEQUENCE_LSTM": (BIDIRECTIONAL_LSTM_WEIGHTS, 0),
    "RNN": ((1, 2), 0),
    "UNIDIRECTIONAL_SEQUENCE_RNN": ((1, 2), 0),
    "SVDF": ((1, 2), 0),
    "EMBEDDING_LOOKUP": ((1,), -1),
    "GATHER": ((0,), -1),
}
PASS_THROUGH = frozenset({"DEQUANTIZE", "DENSIFY"})
# Look-ups copy rows: they have no output channels and no arithmetic.
LOOKUPS = frozenset({"EMBEDDING_LOOKUP", "GATHER"})


@dataclass(frozen=True)
class Weight:
    """One constant that an operator multiplies with, or looks up.

    Attributes:
        subgraph: index of the graph it is in.
        operator: builtin name of the operator that uses it.
        operator_index: its place in its graph.
        channel_axis: axis of its output channels; None for a look-up table.
    """

    subgraph: int
    tensor: Tensor
    operator: str
    operator_index: int
    channel_axis: int | None

    @cached_property
    def values(self) -> Array | None:
        """Its values in the file's layout; None where it is sparse."""
        return constant_values(self.tensor)

    @cached_property
    def zeros(self) -> int:
        """Number of elements that stand for 0; blocks that a sparse tensor leaves out are zeros."""
        return count_zeros(self.tensor)

    @property
    def zero_channels(self) -> int:
        """Number of output channels that are all zero."""
        if self.values is None or self.channel_axis is None:
            return 0
        channels = np.moveaxis(is_zero(self.tensor, self.values), self.channel_axis, 0)
        return int(channels.reshape(channels.shape[0], -1).all(axis=1).sum())


def weights_of(graph: Subgraph, number: int) -> Iterator[Weight]:
    """Yields the weights of a graph, each once, in the order of the operators that use them."""
    sources = unpacked_constants(graph)
    seen: set[int] = set()
    for operator in graph.operators:
        for index in _weight_inputs(operator):
            tensor = graph.tensors[sources.get(index, index)]
            if tensor.constant and tensor.index not in seen and len(tensor.stored_shape) > 1:
                seen.add(tensor.index)
                yield Weight(number, tensor, operator.name, operator.index, channel_axis(operator, tensor))


def channel_axis(operator: Operator, tensor: Tensor) -> int | None:
    """Gives the axis of the output channels of an operator's weight: where its scales run, else by operator."""
    if operator.name in LOOKUPS:
        return None
    if tensor.quantized_dimension >= 0:
        return tensor.quantized_dimension
    axis = WEIGHTS[operator.name][1]
    rank = len(tensor.stored_shape)
    if operator.name == "BATCH_MATMUL":
        left = operator.inputs[0] == tensor.index
        axis = -2 if left or operator.transposed_weights else -1
    axis = axis + rank if axis < 0 else axis
    return axis if 0 <= axis < rank else None


def count_zeros(tensor: Tensor) -> int:
    """Gives the number of elements that stand for 0."""
    stored = stored_values(tensor)
    if stored is None:
        return 0
    if tensor.sparse:
        return max(0, tensor.size - int(np.count_nonzero(stored)))
    return int(is_zero(tensor, stored[: tensor.size].reshape(tensor.stored_shape)).sum())


def is_zero(tensor: Tensor, values: Array) -> Array:
    """Gives where values stand for 0: at the zero point where they are quantized."""
    if not any(tensor.zero_points):
        return np.asarray(values == 0)
    zero_points: Array = np.asarray(tensor.zero_points)
    if tensor.quantized_dimension >= 0:
        shape = [1] * values.ndim
        shape[tensor.quantized_dimension] = len(zero_points)
        zero_points = zero_points.reshape(shape)
    return np.asarray(values == zero_points)


def _weight_inputs(operator: Operator) -> Iterator[int]:
    places: Sequence[int] = WEIGHTS.get(operator.name, ((), 0))[0]
    for place in places:
        if place < len(operator.inputs) and operator.inputs[place] >= 0:
            yield operator.inputs[place]


def unpacked_constants(graph: Subgraph) -> Mapping[int, int]:
    """Gives, by tensor that is only unpacked at load time, the constant it comes from."""
    sources: dict[int, int] = {}
    for operator in graph.operators:
        if operator.name in PASS_THROUGH and operator.inputs and operator.outputs:
            source = sources.get(operator.inputs[0], operator.inputs[0])
            if source >= 0 and graph.tensors[source].constant:
                sources[operator.outputs[0]] = source
    return sources
