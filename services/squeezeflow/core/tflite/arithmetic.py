"""Whether an operator computes in integers, in floats, or with integer weights on float activations."""

from __future__ import annotations

from collections.abc import Iterator

from squeezeflow.core.tflite.layout import Operator, Subgraph, Tensor
from squeezeflow.core.tflite.values import FLOATS
from squeezeflow.core.tflite.weights import unpacked_constants

INTEGER, HYBRID, FLOAT = "integer", "hybrid", "float"
# They look at the shape of their input, whatever its type.
SHAPE_ONLY = frozenset({"SHAPE", "RANK"})
# The border between integers and floats: neither side computes.
BORDER = frozenset({"QUANTIZE", "DEQUANTIZE"})
QUANTIZED_WEIGHTS = frozenset({"int8", "uint8", "int4", "int2", "uint4"})
# The converter leaves smaller weights in float (seen: 1,023 elements stay, 1,024 become int8).
DYNAMIC_MINIMUM = 1024
# Operators whose weights the converter makes int8 for float activations. Seen to stay float: CONV_3D,
# CONV_3D_TRANSPOSE, MUL, and BATCH_MATMUL with the constant on the left.
HYBRID_KERNELS = frozenset(
    {
        *("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL", "EMBEDDING_LOOKUP"),
        *("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "SVDF"),
        *("RNN", "UNIDIRECTIONAL_SEQUENCE_RNN"),
    }
)


def arithmetic(operator: Operator, graph: Subgraph) -> str:
    """Gives `integer`, `hybrid` or `float`; QUANTIZE and DEQUANTIZE count as integer where one side is."""
    if operator.name in SHAPE_ONLY:
        return INTEGER
    inputs = [graph.tensors[index] for index in operator.inputs if index >= 0]
    outputs = [graph.tensors[index] for index in operator.outputs]
    if operator.name in BORDER:
        return FLOAT if all(tensor.dtype in FLOATS for tensor in (*inputs, *outputs)) else INTEGER
    if not any(tensor.dtype in FLOATS for tensor in (*inputs, *outputs)):
        return INTEGER
    unpacked = unpacked_constants(graph)
    weights = [tensor for tensor in inputs if tensor.constant or tensor.index in unpacked]
    return HYBRID if any(tensor.dtype in QUANTIZED_WEIGHTS and tensor.scales for tensor in weights) else FLOAT


# They change what a value is written in, or where it stands, not the value.
CARRIERS = frozenset({*BORDER, "RESHAPE"})


def output_step(graph: Subgraph, index: int) -> float:
    """Gives the smallest difference that an output can show: the scale it was last quantized with, 0 for floats."""
    for tensor, _ in _upstream(graph, index):
        if tensor.dtype not in FLOATS:
            return max(tensor.scales, default=0.0)
    return 0.0


def computing_operator(graph: Subgraph, index: int) -> str:
    """Gives the name of the operator that computes a tensor's values; empty where it is an input or a constant."""
    for _, operator in _upstream(graph, index):
        if operator is not None and operator.name not in CARRIERS:
            return operator.name
    return ""


def _upstream(graph: Subgraph, index: int) -> Iterator[tuple[Tensor, Operator | None]]:
    """Yields a tensor and its operator, and what they were carried over from, up to the operator that computes."""
    producers = {output: operator for operator in graph.operators for output in operator.outputs}
    # Damaged files may hold cycles.
    for _ in range(len(graph.operators) + 1):
        operator = producers.get(index)
        yield graph.tensors[index], operator
        if operator is None or operator.name not in CARRIERS or not operator.inputs or operator.inputs[0] < 0:
            return
        index = operator.inputs[0]
