"""Which weights of a Keras layer are its kernels: one table, by class, for every technique that changes kernels.

Layers inside of wrappers, and cells inside of recurrent layers, hold kernels of their own: each is a part of its layer,
named by the way to it, `bidirectional/forward_lstm`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from squeezeflow.modelkit import layers, naming

# Attributes that hold kernels, by class, from TFMOT's registries; `cell.` stands for the cell of a recurrent layer.
KERNELS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(["Conv1D", "Conv2D", "Conv3D", "Dense"], ("kernel",)),
    **dict.fromkeys(["Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"], ("kernel",)),
    **dict.fromkeys(["LocallyConnected1D", "LocallyConnected2D"], ("kernel",)),
    **dict.fromkeys(["SeparableConv1D", "SeparableConv2D"], ("pointwise_kernel",)),
    "Embedding": ("embeddings",),
    "MultiHeadAttention": (
        "_query_dense.kernel",
        "_key_dense.kernel",
        "_value_dense.kernel",
        "_output_dense.kernel",
    ),
    **dict.fromkeys(["LSTM", "GRU", "SimpleRNN"], ("cell.kernel", "cell.recurrent_kernel")),
    **dict.fromkeys(["LSTMCell", "GRUCell", "SimpleRNNCell"], ("kernel", "recurrent_kernel")),
}
DONE = {"prune": "pruned", "cluster": "clustered"}


@dataclass(frozen=True)
class Kernel:
    """A kernel of a layer.

    Attributes:
        name: of the layer, with that of the weight where the layer has several kernels.
        attribute: where the layer keeps it.
        weight: the variable; of a SavedModel, its values.
    """

    name: str
    attribute: str
    weight: Any


@dataclass(frozen=True)
class Part:
    """What holds kernels itself: a layer of a model's graph, or a layer or cell inside of one.

    Attributes:
        path: the way to it: the layer's own path, with the names of what lies inside of it behind.
        layer: the layer or cell.
        outer: the layer of the graph: itself, or the wrapper around it.
        outer_path: its name, nested models' layers under the path of their model.
    """

    path: str
    layer: Any
    outer: Any
    outer_path: str

    @property
    def within(self) -> tuple[str, ...]:
        """The paths of what it lies in, the outermost first; empty for a layer of the graph."""
        inside = self.path.removeprefix(self.outer_path).split("/")
        return tuple(self.outer_path + "/".join(inside[:count]) for count in range(1, len(inside)))

    @property
    def short_path(self) -> str:
        """The path without nested models."""
        return f"{self.outer.name}{self.path.removeprefix(self.outer_path)}"

    def kernels(self, table: Mapping[str, tuple[str, ...]]) -> tuple[Kernel, ...]:
        """Gives the kernels that a table of attributes by class names."""
        attributes = table.get(type(self.layer).__name__, ())
        return tuple(
            Kernel(
                self.path if len(attributes) == 1 else f"{self.path}/{_tail(self.layer, attribute)}",
                attribute,
                operator.attrgetter(attribute)(self.layer),
            )
            for attribute in attributes
        )


def parts(model: Any) -> Iterator[Part]:
    """Gives the parts of every layer of a model, in their order; a layer that is used twice may come twice."""
    for path, layer in layers.walk(model):
        yield from parts_of(layer, path)


def parts_of(layer: Any, path: str) -> Iterator[Part]:
    """Gives the parts of a layer of a graph: itself where nothing lies inside of it."""
    for inner_path, inner in _leaves(layer, path):
        yield Part(inner_path, inner, layer, path)


def without_kernels(layer: Any, technique: str, kernels: Mapping[str, tuple[str, ...]]) -> str:
    """Says why a layer has no kernel for a technique; empty where it has one.

    Args:
        technique: `prune` or `cluster`.
        kernels: the part of `KERNELS` that it works on.
    """
    name = type(layer).__name__
    if name in ("DepthwiseConv1D", "DepthwiseConv2D"):
        return f"depthwise kernels are not {DONE[technique]}: they have few weights, and each one matters"
    if not layer.weights:
        return "has no weights"
    if name not in kernels:
        return f"has no kernel that TFMOT {technique}s ({name})"
    return ""


def reason_of_parts(layer: Any, reason: Callable[[Any], str]) -> str:
    """Gives why nothing inside of a layer is changed, part by part; empty where something is."""
    reasons = {part.path: reason(part.layer) for part in parts_of(layer, layer.name)}
    if not all(reasons.values()):
        return ""
    return "; ".join(why if path == layer.name else f"{path}: {why}" for path, why in reasons.items())


def _leaves(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
    inside = _inside(layer)
    if not inside:
        yield path, layer
    for name, inner in zip(naming.unique([inner.name for inner in inside]), inside, strict=True):
        yield from _leaves(inner, f"{path}/{name}")


def _inside(layer: Any) -> list[Any]:
    """Gives the layers or cells that a layer calls and that have kernels of their own; empty where it has its own."""
    name = type(layer).__name__
    if hasattr(layer, "forward_layer"):
        return [layer.forward_layer, layer.backward_layer]
    if name == "TimeDistributed":
        return [layer.layer]
    if name == "RNN":
        return list(getattr(layer.cell, "cells", [layer.cell]))
    # Cells one after the other; a model that a wrapper calls.
    return list(getattr(layer, "cells", None) or getattr(layer, "layers", None) or [])


def _tail(layer: Any, attribute: str) -> str:
    """Gives `lstm_cell/kernel` for `cell.kernel`."""
    owner, _, name = attribute.rpartition(".")
    return f"{operator.attrgetter(owner)(layer).name}/{name}" if owner else name
