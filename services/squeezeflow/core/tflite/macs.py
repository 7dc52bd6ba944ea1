"""Multiply-accumulates of operators, told from the shapes in the file: one invocation, free axes counted as 1.

One multiply-accumulate is one weight (or one element of the other factor) times one input element, added up: two
floating-point operations. Element-wise operators, pooling and look-ups multiply nothing up and count 0. The body of a
loop is counted once: how often it runs is not in the file.
"""

from __future__ import annotations

import math

from squeezeflow.core.tflite.layout import Operator, Subgraph
from squeezeflow.core.tflite.weights import BIDIRECTIONAL_LSTM_WEIGHTS, LSTM_WEIGHTS

# A fused cell's inputs where it comes without gates of their own: input, activation, one matrix, bias, state.
_BASIC_LSTM_INPUTS = 5
# Operators that multiply each of their matrices with one vector a step: where those matrices are.
_MATRICES: dict[str, tuple[int, ...]] = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": LSTM_WEIGHTS,
    "LSTM": LSTM_WEIGHTS,
    "BIDIRECTIONAL_SEQUENCE_LSTM": BIDIRECTIONAL_LSTM_WEIGHTS,
    "RNN": (1, 2),
    "UNIDIRECTIONAL_SEQUENCE_RNN": (1, 2),
    "SVDF": (1, 2),
}
# Convolutions: where their weights and their data are, and the axes of a weight that one element of the data meets.
_BY_OUTPUT = {
    "CONV_2D": (1, 2, 3),
    "DEPTHWISE_CONV_2D": (1, 2),
    "CONV_3D": (0, 1, 2, 3),
}
_BY_INPUT = {
    "TRANSPOSE_CONV": (0, 1, 2),
    "CONV_3D_TRANSPOSE": (0, 1, 2, 3),
}


def macs(operator: Operator, graph: Subgraph) -> int:
    """Gives the multiply-accumulates of one operator; 0 for those that add no products up."""
    inputs = [_shape(graph, index) for index in operator.inputs]
    output = _shape(graph, operator.outputs[0]) if operator.outputs else ()
    try:
        return _count(operator.name, inputs, output)
    except IndexError:
        # A foreign file may name an operator and give it too few inputs or axes: the interpreter will refuse it.
        return 0


def total_macs(graphs: tuple[Subgraph, ...]) -> int:
    """Gives the multiply-accumulates of a main graph and the bodies of its loops and conditions, each once."""
    return sum(macs(operator, graph) for graph in graphs for operator in graph.operators)


def _count(name: str, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    if name in _BY_OUTPUT:
        # Groups need no care: the input axis of a weight is the group's.
        return math.prod(output) * math.prod(inputs[1][axis] for axis in _BY_OUTPUT[name])
    if name in _BY_INPUT:
        return math.prod(inputs[2]) * math.prod(inputs[1][axis] for axis in _BY_INPUT[name])
    if name == "FULLY_CONNECTED":
        return math.prod(output) * inputs[1][-1]
    if name == "BATCH_MATMUL":
        # Rows of the output are rows of the left factor, whichever way that is stored.
        return math.prod(output) * (math.prod(inputs[0][-2:]) // max(1, output[-2]))
    if name in _MATRICES:
        places = (2,) if name == "LSTM" and len(inputs) == _BASIC_LSTM_INPUTS else _MATRICES[name]
        matrices: int = sum(math.prod(inputs[place]) for place in places if place < len(inputs) and inputs[place])
        # Every step of every sample, whichever of the two axes comes first.
        return math.prod(inputs[0][:-1]) * matrices
    return 0


def _shape(graph: Subgraph, index: int) -> tuple[int, ...]:
    """Gives a shape with free axes as 1; empty for an input that is left out."""
    return tuple(1 if size < 0 else size for size in graph.tensors[index].stored_shape) if index >= 0 else ()
