"""Which layer a weight of a TFLite file belongs to.

The converter writes the path of a layer into the names of its operator's tensors, unless it fuses or renames them. So a
weight belongs to the layer that has a kernel of its size, best with its very values, else by name. Files without a
Keras model are read by the names alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeezeflow.core.invariants.matching import LSTM_GATES, layouts
from squeezeflow.core.tflite import TfliteFile, Weight
from squeezeflow.core.tflite.explain import Explainer

# Names that the converter gives where it has no better ones.
_NAMELESS = re.compile(r"^(arith\.|tfl\.|StatefulPartitionedCall|PartitionedCall|Identity|serving_default|$)")


@dataclass(frozen=True)
class Layer:
    """One layer: its path, its Keras class (for a file without layers, its operator)."""

    path: str
    class_name: str


Key = tuple[int, int]


def key(weight: Weight) -> Key:
    """Gives what tells a weight from all others of its file: its graph and its index there."""
    return weight.subgraph, weight.tensor.index


def layers_of(file: TfliteFile, model: Any = None) -> tuple[tuple[Layer, ...], dict[Key, str]]:
    """Gives all layers, and for every weight the path of its layer.

    Args:
        file: float.
        model: the Keras model that it was converted from; None: layers are made of the names in the file.
    """
    if model is None:
        return _from_names(file)
    from squeezeflow.modelkit.layers import walk

    found = [(path, layer, [np.asarray(w) for w in layer.weights if len(w.shape) > 1]) for path, layer in walk(model)]
    keras3 = type(model).__module__.split(".")[0] == "keras"
    kernels = [(path, kernel) for path, _, own in found for kernel in own]
    owners = {key(weight): _owner(file, weight, kernels, keras3=keras3) for weight in file.weights}
    listed = [Layer(path, type(layer).__name__) for path, layer, _ in found]
    nameless = [weight for weight in file.weights if not owners[key(weight)]]
    for weight in nameless:
        owners[key(weight)] = _operator_name(weight)
        listed.append(Layer(_operator_name(weight), weight.operator))
    return tuple(dict.fromkeys(listed)), owners


def _owner(file: TfliteFile, weight: Weight, kernels: Sequence[tuple[str, np.ndarray]], *, keras3: bool) -> str:
    """Gives the layer whose kernel a weight is: by its values, then by its name; empty where neither tells."""
    names = [part.split("/") for part in _names(file, weight)]
    scored = []
    for path, kernel in kernels:
        if not len(_parts(kernel, weight.tensor.size)):
            continue
        equal, named = _same_values(weight, kernel), max(_named(name, path, keras3=keras3) for name in names)
        if equal or named:
            scored.append(((equal, named, len(path)), path))
    return max(scored)[1] if scored else ""


def _names(file: TfliteFile, weight: Weight) -> list[str]:
    graph = file.subgraphs[weight.subgraph]
    outputs = graph.operators[weight.operator_index].outputs
    return [
        part
        for index in (weight.tensor.index, *outputs)
        for part in graph.tensors[index].name.split(";")
        if not _NAMELESS.match(part)
    ] or [""]


def _named(name: Sequence[str], path: str, *, keras3: bool) -> int:
    """Says how well a tensor's name holds a layer's path: 0 not at all.

    Keras 3 adds a number to the names of a model that was called before: `conv` becomes `conv_1`.
    """
    parts = path.split("/")
    for wanted, score in ((parts, 4), (parts[-1:], 2)):
        numbered = [re.compile(re.escape(part) + r"_\d+$") for part in wanted]
        for start in range(len(name) - len(wanted) + 1):
            window = name[start : start + len(wanted)]
            if list(window) == wanted:
                return score - keras3
            if keras3 and all(pattern.match(part) for pattern, part in zip(numbered, window, strict=True)):
                return score
    return 0


def _same_values(weight: Weight, kernel: np.ndarray) -> bool:
    if weight.values is None:
        return False
    flat = weight.values.reshape(-1)
    return any(np.array_equal(order, flat) for part in _parts(kernel, flat.size) for order in layouts(part))


def _parts(kernel: np.ndarray, size: int) -> Sequence[np.ndarray]:
    """Gives the kernel, or the quarters of an LSTM's, where those have a size."""
    if kernel.size == size:
        return [kernel]
    if kernel.ndim == 2 and kernel.shape[1] % LSTM_GATES == 0 and kernel.size == size * LSTM_GATES:
        return np.split(kernel, LSTM_GATES, axis=1)
    return []


def _operator_name(weight: Weight) -> str:
    prefix = f"graph_{weight.subgraph}/" if weight.subgraph else ""
    return f"{prefix}{weight.operator.lower()}_{weight.operator_index}"


def _from_names(file: TfliteFile) -> tuple[tuple[Layer, ...], dict[Key, str]]:
    """Takes the layers that the file is described with: who looks at it first finds the names for patterns there."""
    explainers = [Explainer(graph) for graph in file.subgraphs]
    owners: dict[Key, str] = {}
    listed: dict[str, Layer] = {}
    for weight in file.weights:
        operator = file.subgraphs[weight.subgraph].operators[weight.operator_index]
        # Of several fused layers the first is that of the weights.
        owner = explainers[weight.subgraph].layer(operator).split(", ")[0] or _operator_name(weight)
        owners[key(weight)] = owner
        listed.setdefault(owner, Layer(owner, weight.operator))
    return tuple(listed.values()), owners
