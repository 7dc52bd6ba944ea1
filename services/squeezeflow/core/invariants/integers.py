"""Which operators and weights of a file really are integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from squeezeflow.core.invariants.places import tensor_place, weight_place
from squeezeflow.core.tflite import Operator, Tensor, TfliteFile, Weight
from squeezeflow.core.tflite.arithmetic import DYNAMIC_MINIMUM, HYBRID_KERNELS, INTEGER, arithmetic
from squeezeflow.core.tflite.values import FLOATS
from squeezeflow.v1 import step_pb2

__all__ = ["DYNAMIC_MINIMUM", "dynamic_range", "float_operators", "integer"]

# Operators whose int8 kernels take symmetric weights; constants of others are quantized like activations.
SYMMETRIC_KERNELS = HYBRID_KERNELS - {"BATCH_MATMUL", "EMBEDDING_LOOKUP"}
# Operator → places of its biases among its inputs.
BIASES = {
    **dict.fromkeys(["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"], (2,)),
    "TRANSPOSE_CONV": (3,),
}
# Mode → type of inputs and outputs; ids and other integers that stand for themselves keep theirs.
INTEGER_ONLY = {"int8_io": "int8", "uint8_io": "uint8"}


def float_operators(file: TfliteFile) -> list[str]:
    """Gives the names of operators that do not compute in integers alone, of all graphs, each with how often."""
    return [f"{name} ×{count}" if count > 1 else name for name, count in sorted(_not_integer(file).items())]


def integer(file: TfliteFile, mode: str = "int8", *, allowed: Collection[str] = ()) -> step_pb2.Invariant:
    """Holds when every operator computes in integers and int8 weights are symmetric.

    In mode `int16x8`, weights are int8, what is computed int16 and biases int64.

    Args:
        mode: `int8` (float inputs and outputs), `int8_io` or `uint8_io` (integer ones too), `int16x8`.
        allowed: names of operators that may stay float; they are named.
    """
    left = {name: count for name, count in _not_integer(file).items() if name not in allowed}
    named = sorted(set(_not_integer(file)) & set(allowed))
    total = sum(len(graph.operators) for graph in file.subgraphs)
    problems = [f"not integer: {', '.join(_left_places(file, left))}"] if left else []
    if mode in INTEGER_ONLY:
        problems += _wrong_input_output(file, INTEGER_ONLY[mode])
    if mode == "int16x8":
        problems += list(_not_int16x8(file))
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
        f"{weight_place(file, weight)} is {weight.tensor.dtype}"
        for weight in expected.values()
        if weight.tensor.dtype != "int8"
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


def _left_places(file: TfliteFile, left: Collection[str]) -> Iterator[str]:
    """Yields operators by name, each with how often, and the first of them by the tensor it gives and its layer."""
    for name in sorted(left):
        operators = [
            (number, graph, operator)
            for number, graph in enumerate(file.subgraphs)
            for operator in graph.operators
            if operator.name == name and arithmetic(operator, graph) != INTEGER
        ]
        number, graph, first = operators[0]
        tensor = graph.tensors[first.outputs[0]] if first.outputs else None
        layer = file.layer_of(tensor, number) if tensor is not None else ""
        place = f" (tensor {tensor.name}{f', layer {layer}' if layer else ''})" if tensor is not None else ""
        yield f"{name} ×{len(operators)}{place}"


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
    problems = [f"{weight_place(file, w)} has a zero point other than 0" for w in weights if any(w.tensor.zero_points)]
    # −128 has no positive counterpart: kernels that negate weights would overflow.
    lowest = [weight for weight in weights if weight.values is not None and (weight.values == -128).any()]
    problems += [f"{weight_place(file, weight)} holds −128" for weight in lowest]
    return len(weights), problems


def _wrong_input_output(file: TfliteFile, dtype: str) -> list[str]:
    ends: list[Tensor] = [file.main.tensors[index] for index in (*file.inputs, *file.outputs)]
    floats = [tensor_place(file, tensor) for tensor in ends if tensor.dtype in FLOATS]
    others = [
        f"{tensor_place(file, tensor)} {tensor.dtype}" for tensor in ends if tensor.scales and tensor.dtype != dtype
    ]
    problems = [f"float inputs or outputs: {', '.join(floats)}"] if floats else []
    return [*problems, *([f"inputs or outputs that are not {dtype}: {', '.join(others)}"] if others else [])]


def _not_int16x8(file: TfliteFile) -> Iterator[str]:
    """Yields weights that are not int8, biases that are not int64, computed values that are not int16."""
    weights = [weight for weight in file.weights if weight.operator in SYMMETRIC_KERNELS]
    others = [weight for weight in weights if weight.tensor.dtype != "int8"]
    yield from (f"{weight_place(file, weight)} is {weight.tensor.dtype}" for weight in others)
    for weight in weights:
        graph = file.subgraphs[weight.subgraph]
        operator = graph.operators[weight.operator_index]
        places = BIASES.get(operator.name, ())
        for bias in (graph.tensors[operator.inputs[p]] for p in places if _input(operator, p) >= 0):
            if bias.constant and bias.dtype != "int64":
                yield f"bias {tensor_place(file, bias, weight.subgraph)} of {operator.name} is {bias.dtype}"
    for number, graph in enumerate(file.subgraphs):
        computed = (tensor for tensor in graph.tensors if not tensor.constant and tensor.scales)
        wider = [tensor for tensor in computed if tensor.dtype != "int16"]
        yield from (f"{tensor_place(file, tensor, number)} is {tensor.dtype}" for tensor in wider)


def _input(operator: Operator, place: int) -> int:
    return operator.inputs[place] if place < len(operator.inputs) else -1


def _invariant(passed: bool, detail: str) -> step_pb2.Invariant:
    return step_pb2.Invariant(name="integer", passed=passed, detail=detail)
