"""Which operators and weights of a file really are integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from squeezeflow.core.tflite import Tensor, TfliteFile, Weight
from squeezeflow.core.tflite.arithmetic import INTEGER, arithmetic
from squeezeflow.core.tflite.values import FLOATS
from squeezeflow.v1 import step_pb2

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
# Operators whose int8 kernels take symmetric weights; constants of others are quantized like activations.
SYMMETRIC_KERNELS = HYBRID_KERNELS - {"BATCH_MATMUL", "EMBEDDING_LOOKUP"}
INTEGER_ONLY = frozenset({"int8_io", "uint8_io"})


def float_operators(file: TfliteFile) -> list[str]:
    """Gives the names of operators that do not compute in integers alone, of all graphs, each with how often."""
    return [f"{name} ×{count}" if count > 1 else name for name, count in sorted(_not_integer(file).items())]


def integer(file: TfliteFile, mode: str = "int8", *, allowed: Collection[str] = ()) -> step_pb2.Invariant:
    """Holds when every operator computes in integers and int8 weights are symmetric.

    Args:
        mode: `int8` (float inputs and outputs), `int8_io` or `uint8_io` (integer ones too), `int16x8`.
        allowed: names of operators that may stay float; they are named.
    """
    left = {name: count for name, count in _not_integer(file).items() if name not in allowed}
    named = sorted(set(_not_integer(file)) & set(allowed))
    total = sum(len(graph.operators) for graph in file.subgraphs)
    problems = [f"not integer: {', '.join(f'{name} ×{count}' for name, count in sorted(left.items()))}"] if left else []
    if mode in INTEGER_ONLY:
        floats = [file.main.tensors[index].name for index in (*file.inputs, *file.outputs) if _is_float(file, index)]
        problems += [f"float inputs or outputs: {', '.join(floats)}"] if floats else []
    checked, asymmetric = _asymmetric(file)
    told = [
        f"{total - sum(_not_integer(file).values())} of {total} operators are integer",
        *([f"left float: {', '.join(named)}"] if named else []),
        f"{checked} int8 weights looked at",
    ]
    return _invariant(not problems and not asymmetric, "; ".join([*problems, *asymmetric, *told]))


def dynamic_range(file: TfliteFile) -> step_pb2.Invariant:
    """Holds when weights of ≥ 1,024 elements of operators with a hybrid kernel are int8; other large floats are listed.

    An operator with several weights counts when all of them are that large: the converter quantizes all or none.
    """
    expected = {id(weight.tensor): weight for weight in _expected_int8(file)}
    wrong = [
        f"{_place(weight)} is {weight.tensor.dtype}" for weight in expected.values() if weight.tensor.dtype != "int8"
    ]
    _, asymmetric = _asymmetric(file)
    others = [
        f"{tensor.name} {tensor.dtype} ×{tensor.size}"
        for graph in file.subgraphs
        for tensor in graph.tensors
        if tensor.constant and tensor.dtype in FLOATS and tensor.size >= DYNAMIC_MINIMUM and id(tensor) not in expected
    ]
    told = [f"{len(expected) - len(wrong)} of {len(expected)} weights of {DYNAMIC_MINIMUM} elements or more are int8"]
    told += [f"left float: {', '.join(others)}"] if others else []
    return _invariant(not wrong and not asymmetric, "; ".join([*wrong, *asymmetric, *told]))


def _not_integer(file: TfliteFile) -> Counter[str]:
    return Counter(
        operator.name
        for graph in file.subgraphs
        for operator in graph.operators
        if arithmetic(operator, graph) != INTEGER
    )


def _expected_int8(file: TfliteFile) -> Iterator[Weight]:
    by_operator: dict[tuple[int, int], list[Weight]] = {}
    for weight in file.weights:
        by_operator.setdefault((weight.subgraph, weight.operator_index), []).append(weight)
    for weights in by_operator.values():
        if all(weight.tensor.size >= DYNAMIC_MINIMUM and _has_hybrid_kernel(file, weight) for weight in weights):
            yield from weights


def _has_hybrid_kernel(file: TfliteFile, weight: Weight) -> bool:
    operator = file.subgraphs[weight.subgraph].operators[weight.operator_index]
    if operator.name == "BATCH_MATMUL" and operator.inputs[0] == weight.tensor.index:
        return False
    return operator.name in HYBRID_KERNELS


def _asymmetric(file: TfliteFile) -> tuple[int, list[str]]:
    """Gives how many int8 weights were looked at, and which have a zero point or a −128."""
    weights = [w for w in file.weights if w.tensor.dtype == "int8" and w.operator in SYMMETRIC_KERNELS]
    problems = [f"{_place(w)} has a zero point other than 0" for w in weights if any(w.tensor.zero_points)]
    # −128 has no positive counterpart: kernels that negate weights would overflow.
    problems += [f"{_place(w)} holds −128" for w in weights if w.values is not None and (w.values == -128).any()]
    return len(weights), problems


def _place(weight: Weight) -> str:
    return f"weight {weight.tensor.name} of {weight.operator}"


def _is_float(file: TfliteFile, index: int) -> bool:
    tensor: Tensor = file.main.tensors[index]
    return tensor.dtype in FLOATS


def _invariant(passed: bool, detail: str) -> step_pb2.Invariant:
    return step_pb2.Invariant(name="integer", passed=passed, detail=detail)
