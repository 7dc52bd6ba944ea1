"""Peak of a file's activation memory, as LiteRT's planner would lay its tensors out without delegates.

The same plan as LiteRT's `ArenaPlanner`: a tensor lives from the operator that writes it to the last one that reads it;
inputs live from the start and neither they nor outputs are given up; tensors are placed by size, the largest first,
each into the smallest gap that is free during its life, at multiples of 64 bytes. RESHAPE, EXPAND_DIMS, SQUEEZE and
BITCAST share their input's memory.

Outside of the arena, and not counted: constants, which stay where the file is mapped. Counted on top of it, since they
are kept from call to call: variables, and constants that are unpacked at load (float16 and sparse weights, which a
delegate would not unpack). Not known from a file, and not counted: scratch memory of kernels. Free axes count as 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from squeezeflow.core.tflite.layout import Operator, Subgraph, Tensor
from squeezeflow.core.tflite.values import ELEMENT_BITS
from squeezeflow.core.tflite.weights import unpacked_constants

ALIGNMENT = 64
SHARING = frozenset({"RESHAPE", "EXPAND_DIMS", "SQUEEZE", "BITCAST"})


@dataclass(frozen=True)
class Life:
    """A tensor in the arena: its bytes, and the operators between which (both included) they are its own."""

    index: int
    size: int
    first: int
    last: int


def arena_peak_bytes(graph: Subgraph) -> int:
    """Gives the bytes of one graph's arena and of what is kept beside it."""
    kept = set(unpacked_constants(graph)) | {t.index for t in graph.tensors if t.variable}
    end = len(graph.operators)
    sizes = [_bytes(graph.tensors[index]) for index in kept]
    persistent = _plan([Life(number, size, 0, end) for number, size in enumerate(sizes)])
    return _plan(_in_order(lives(graph, kept), end)) + persistent


def lives(graph: Subgraph, kept: set[int]) -> list[Life]:
    """Gives the tensors that the arena holds; those that share memory are one, with the life of all of them."""
    owner = _owners(graph)
    end = len(graph.operators)
    first: dict[int, int] = dict.fromkeys(graph.inputs, 0)
    last: dict[int, int] = {}
    for step in graph.operators:
        for index in step.outputs:
            first.setdefault(owner[index], step.index)
        for index in step.inputs:
            if index >= 0:
                last[owner[index]] = step.index
    # Inputs and outputs are the caller's to look at; a result that nobody reads is never given up either.
    for index in (*graph.inputs, *graph.outputs):
        last[owner[index]] = end
    return [
        Life(index, _bytes(graph.tensors[index]), start, last.get(index, end))
        for index, start in first.items()
        if index not in kept and not graph.tensors[index].constant
    ]


def _owners(graph: Subgraph) -> list[int]:
    """Gives for every tensor the one whose memory it uses: its own, or that of what it is a reshape of."""
    owner = list(range(len(graph.tensors)))
    for step in graph.operators:
        if step.name in SHARING and _may_share(step, graph):
            owner[step.outputs[0]] = owner[step.inputs[0]]
    return owner


def _may_share(step: Operator, graph: Subgraph) -> bool:
    if not step.inputs or step.inputs[0] < 0 or not step.outputs:
        return False
    source, result = graph.tensors[step.inputs[0]], graph.tensors[step.outputs[0]]
    apart = source.index in graph.inputs or result.index in graph.outputs
    return not apart and not source.constant and not source.variable and _bytes(source) == _bytes(result)


def _in_order(tensors: list[Life], end: int) -> list[Life]:
    """Sorts tensors as the planner places them: those that live throughout, then by size, then by time."""

    def key(life: Life) -> tuple[int, int, int]:
        throughout = life.first == 0 and life.last == end
        return (0, life.index, 0) if throughout else (1, -life.size, life.first)

    return sorted(tensors, key=key)


def _plan(tensors: list[Life]) -> int:
    """Gives the bytes up to the end of the last tensor, each placed in the order given."""
    placed: list[tuple[int, Life]] = []
    peak = 0
    for life in tensors:
        if not life.size:
            continue
        offset = _offset(life, [item for item in placed if _overlap(item[1], life)])
        placed.append((offset, life))
        placed.sort(key=lambda item: item[0])
        peak = max(peak, offset + life.size)
    return peak


def _offset(life: Life, neighbours: list[tuple[int, Life]]) -> int:
    """Gives where a tensor goes among those that live at the same time, by offset: the smallest gap, else the end."""
    best, best_gap, end = -1, math.inf, 0
    for offset, other in neighbours:
        start = _aligned(end)
        if start + life.size <= offset and offset - end < best_gap:
            best, best_gap = start, offset - end
        end = max(end, offset + other.size)
    return best if best >= 0 else _aligned(end)


def _overlap(one: Life, other: Life) -> bool:
    return one.first <= other.last and other.first <= one.last


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _bytes(tensor: Tensor) -> int:
    """Gives the bytes of a tensor, free axes as 1; 0 for strings and handles, which lie elsewhere."""
    elements = math.prod(1 if size < 0 else size for size in tensor.stored_shape)
    return (elements * ELEMENT_BITS.get(tensor.dtype, 0) + 7) // 8
