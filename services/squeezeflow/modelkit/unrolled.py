"""Recurrent layers with every time step written out, instead of a loop.

Calibrating a graph with a loop kills the converter, and a fused LSTM has no int16 kernel; the same steps, written out
one after the other, are plain products and sums that quantize as others do. Nothing is copied for it: the layers of the
model themselves are told to unroll, the model is traced once more, and they are told to loop again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Layers that know how to unroll, alone or in a Bidirectional; those of ConvLSTM do not.
RECURRENT = frozenset({"LSTM", "GRU", "SimpleRNN", "RNN"})
# Steps of all layers together, both directions counted. Every step is some 20 operators of the file: what the converter
# takes for them grows faster than their number.
MOST_STEPS = 256
# Operators that call a graph of their own, in a trace.
_LOOPS = frozenset({"While", "StatelessWhile"})


def directions(layer: Any) -> list[Any]:
    """Gives the layers that a layer loops with: itself, or the two of a Bidirectional."""
    pair = [getattr(layer, name, None) for name in ("forward_layer", "backward_layer")]
    return [one for one in pair if one is not None] or [layer]


def loops(layer: Any) -> bool:
    """Tells whether a layer is a recurrent one that is not unrolled."""
    return any(type(one).__name__ in RECURRENT and not one.unroll for one in directions(layer))


def steps(layer: Any) -> int | None:
    """Gives how many time steps a built layer takes, at most where it is called in several places; None: not known."""
    axis = 0 if getattr(directions(layer)[0], "time_major", False) else 1
    nodes = getattr(layer, "_inbound_nodes", [])
    found = [_first(node.input_tensors).shape[axis] for node in nodes]
    return max(map(int, found)) if found and None not in found else None


def _first(tensors: Any) -> Any:
    """Gives the sequence among what a layer is called with: its state comes after it."""
    while isinstance(tensors, (list, tuple)):
        tensors = tensors[0]
    return tensors


def cost(layer: Any) -> int:
    """Gives how many steps are written out for a layer whose number of steps is known: of both its directions."""
    return (steps(layer) or 0) * len(directions(layer))


def reason(layer: Any) -> str:
    """Says why a recurrent layer cannot be unrolled, and what to change; empty where it can."""
    if any(type(one).__name__ not in RECURRENT for one in directions(layer)):
        return f"{type(layer).__name__} does not unroll"
    if any(getattr(one, "stateful", False) for one in directions(layer)):
        return "it keeps its state between calls: save it with stateful=False"
    if steps(layer) is None:
        return "its number of steps is not known: save the model with a fixed time axis"
    if cost(layer) > MOST_STEPS:
        return f"it takes {cost(layer)} steps, and at most {MOST_STEPS} are written out: shorten the sequences"
    return ""


@contextmanager
def written_out(layers: Sequence[Any]) -> Iterator[None]:
    """Makes recurrent layers unroll where their model is traced, as long as it lasts."""
    changed: list[tuple[Any, str, Any]] = []
    for one in (one for layer in layers for one in directions(layer)):
        # The second: tf_keras decides once, when a layer is made, whether to call a kernel that loops.
        for name, value in (("unroll", True), ("_could_use_gpu_kernel", False)):
            if hasattr(one, name):
                changed.append((one, name, getattr(one, name)))
                setattr(one, name, value)
    try:
        yield
    finally:
        for one, name, value in changed:
            setattr(one, name, value)


def loops_in(graph: Any) -> list[str]:
    """Names the loops of a graph (a GraphDef) and its functions; those that the converter fuses are among them."""
    nodes = [node for part in (graph.node, *(f.node_def for f in graph.library.function)) for node in part]
    return [node.name for node in nodes if node.op in _LOOPS]
