"""Where in a graph a wrong output comes from: the first NaN, and the operator after which values are off.

An output tells that something is wrong, not what. So every tensor of one sample is looked at in execution order, in
whatever runs the graph: what is wrong with an output has begun in one of its ancestors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.tflite import TfliteFile
from squeezeflow.core.tflite.values import FLOATS, constant_values
from squeezeflow.core.tflite.weights import unpacked_constants

Array = npt.NDArray[Any]
Key = Hashable
# Gives what one tensor held, real values; None where that cannot be read or it holds no numbers.
Value = Callable[[Key], Array | None]

# An error shows where it is this share of the largest.
SHOWS = 0.1
# No error shrinks by more than this on its way to all outputs: what seems to was compared with another tensor.
HEALS = 10.0
# But these make errors small: flat ends, and means of noise. TFLite's names and TensorFlow's.
SOOTHING = frozenset(
    {
        *("SOFTMAX", "LOGISTIC", "TANH", "MEAN", "SUM", "AVERAGE_POOL_2D", "REDUCE_MAX", "MAX_POOL_2D", "RELU_N1_TO_1"),
        *("Softmax", "Sigmoid", "Tanh", "Mean", "Sum", "AvgPool", "Max", "MaxPool"),
    }
)
# A tensor of the source belongs to the node that agrees best with it, and to those that agree this much worse.
SHARED = 3.0
# Relative errors below this are the order of sums.
ROUNDING = 1e-6
UNTOLD = "the layer cannot be told, no inner tensor has a counterpart of its name in the source"


@dataclass(frozen=True)
class Node:
    """One computed tensor of a graph.

    Attributes:
        key: what its values are asked for by.
        operator, tensor, layer: names; no layer where none is known.
        inputs: keys of what it is computed from, constants left out.
    """

    key: Key
    operator: str
    tensor: str
    layer: str
    inputs: tuple[Key, ...]

    @property
    def place(self) -> str:
        """`tensor cnn/conv/Conv2D of CONV_2D in layer conv`, for a detail."""
        return f"tensor {self.tensor} of {self.operator}" + (f" in layer {self.layer}" if self.layer else "")


def ancestors(nodes: Sequence[Node], outputs: Collection[Key]) -> list[Node]:
    """Gives the nodes that outputs are computed from, and theirs, in the order given: that of execution."""
    needed = set(outputs)
    found = []
    for node in reversed(nodes):
        if node.key in needed:
            needed.update(node.inputs)
            found.append(node)
    return found[::-1]


def file_nodes(file: TfliteFile) -> list[Node]:
    """Gives the computed tensors of a file's main graph, by index; what only unpacks a constant is none."""
    unpacked = unpacked_constants(file.main)
    computed = {tensor.index for tensor in file.main.tensors if not tensor.constant} - set(unpacked)
    layers = [operator.layer for operator in file.operators]
    return [
        Node(
            index,
            operator.name,
            file.main.tensors[index].name,
            layers[operator.index],
            tuple(key for key in operator.inputs if key in computed),
        )
        for operator in file.main.operators
        for index in operator.outputs
        if index in computed
    ]


def file_constants(file: TfliteFile) -> Callable[[Node], str]:
    """Gives what names the constants that are not finite among those that a node of a file takes."""
    unpacked = unpacked_constants(file.main)
    inputs: dict[Key, tuple[int, ...]] = {
        index: operator.inputs for operator in file.main.operators for index in operator.outputs
    }

    def broken(node: Node) -> Iterator[str]:
        for index in inputs[node.key]:
            tensor = file.main.tensors[unpacked.get(index, index)] if index >= 0 else None
            if tensor is None or tensor.dtype not in FLOATS:
                continue
            values = constant_values(tensor)
            if values is not None and not np.isfinite(values).all():
                kind = "NaN" if np.isnan(values).any() else "infinity"
                yield f"the {tensor.dtype} constant {tensor.name} that holds {kind}"

    return lambda node: " and ".join(broken(node))


def first_not_finite(nodes: Sequence[Node], value: Value, constants: Callable[[Node], str]) -> str:
    """Says in which tensors the first infinity and the first NaN are; empty where all are finite.

    Args:
        nodes: in execution order.
        constants: names what a node takes and is not finite from the start; empty where there is nothing.
    """
    found: dict[str, str] = {}
    for node in nodes:
        values = value(node.key)
        if values is None or values.dtype.kind not in "fc" or np.isfinite(values).all():
            continue
        kind = "NaN" if np.isnan(values).any() else "infinity"
        stored = constants(node)
        found.setdefault(kind, f"the first {kind} is in {node.place}" + (f", which takes {stored}" if stored else ""))
        if kind == "NaN":
            break
    return ", ".join(found.values())


def where_still(nodes: Sequence[Node], one: Value, other: Value, output: Key) -> str:
    """Says which operator makes of two samples the same, so that an output does not vary; empty where none does.

    Args:
        nodes: in execution order.
        one, other: values for each of two samples.
    """
    needed, found = {output}, ""
    for node in reversed(nodes):
        if node.key not in needed:
            continue
        values, others = one(node.key), other(node.key)
        if values is not None and others is not None and np.array_equal(values, others):
            found = f"what is computed is the same from {node.place} on"
            needed.update(node.inputs)
    return found


def where_off(
    nodes: Sequence[Node], value: Value, reference: Callable[[Node], Sequence[Array]], outputs: Collection[Key]
) -> str:
    """Says after which operator the values of a graph are off from those of its source.

    Args:
        nodes: those that the outputs are computed from, in execution order.
        reference: the source's tensors that a node may be: where several were fused, the one that agrees best is it.
        outputs: keys of the outputs that are off.
    """
    errors = _errors(nodes, value, reference)
    _drop_mismatches(nodes, errors, outputs)
    if not set(errors) - set(outputs):
        return UNTOLD
    known = [errors[key] for key in outputs if key in errors]
    if max(known or errors.values()) <= ROUNDING:
        return "run alone and without XNNPACK, the sample that is off the most gives what the source does"
    before = _before(nodes, errors)
    compared = [node for node in nodes if node.key in errors]
    first = next(node for node in compared if errors[node.key] >= SHOWS * max(errors.values()))
    most = max(compared, key=lambda node: _growth(errors[node.key], before[node.key]))
    numbers = {id(n): f"relative error {errors[n.key]:.2g}, {before[n.key]:.2g} before it" for n in (first, most)}
    counted = f"{len(compared)} of {len(nodes)} tensors compared"
    if first is most:
        return f"the error arises in {first.place} ({numbers[id(first)]}; {counted})"
    return (
        f"the error first shows in {first.place} ({numbers[id(first)]}) and grows most in {most.place} "
        f"({numbers[id(most)]}; {counted})"
    )


def _growth(after: float, before: float) -> float:
    return after if np.isinf(after) and not np.isinf(before) else (0.0 if np.isinf(after) else after - before)


def _errors(nodes: Sequence[Node], value: Value, reference: Callable[[Node], Sequence[Array]]) -> dict[Key, float]:
    """Gives the relative error of every tensor that has a counterpart."""
    found: dict[Key, dict[int, float]] = {}
    best: dict[int, float] = {}
    for node in nodes:
        candidates = reference(node)
        values = value(node.key) if candidates else None
        if values is None or values.dtype.kind != "f":
            continue
        alike = [c for c in candidates if _long_axes(c) == _long_axes(values) and c.any()]
        found[node.key] = {id(c): _relative_error(c, values) for c in alike}
        for candidate, error in found[node.key].items():
            best[candidate] = min(error, best.get(candidate, error))
    # An operation that became several operators is the last of them, and whatever only arranges its values.
    fitting = {
        key: [error for candidate, error in pairs.items() if error <= SHARED * best[candidate] + ROUNDING]
        for key, pairs in found.items()
    }
    return {key: min(errors) for key, errors in fitting.items() if errors}


def _long_axes(values: Array) -> tuple[int, ...]:
    """Gives a shape without axes of length 1: TFLite adds and drops them."""
    return tuple(length for length in values.shape if length != 1)


def _relative_error(expected: Array, values: Array) -> float:
    reference = expected.astype(np.float64).reshape(-1)
    size = max(float(np.linalg.norm(reference)), float(np.finfo(np.float64).tiny))
    error = float(np.linalg.norm(values.astype(np.float64).reshape(-1) - reference)) / size
    return float("inf") if np.isnan(error) else error


def _drop_mismatches(nodes: Sequence[Node], errors: dict[Key, float], outputs: Collection[Key]) -> None:
    """Drops the errors that all that is computed from a tensor does not have: it was another tensor."""
    later: dict[Key, float] = {}
    for node in reversed(nodes):
        error, after = errors.get(node.key), later.get(node.key)
        if error is not None and after is not None and node.key not in outputs and error > HEALS * after + ROUNDING:
            del errors[node.key]
        handed_on = errors.get(node.key, after)
        if node.operator in SOOTHING:
            handed_on = float("inf")
        if handed_on is not None:
            for key in node.inputs:
                later[key] = max(later.get(key, 0.0), handed_on)


def _before(nodes: Sequence[Node], errors: Mapping[Key, float]) -> dict[Key, float]:
    """Gives, by node, the largest error of what it is computed from; through tensors that were not compared."""
    before: dict[Key, float] = {}
    for node in nodes:
        before[node.key] = max((errors.get(key, before.get(key, 0.0)) for key in node.inputs), default=0.0)
    return before
