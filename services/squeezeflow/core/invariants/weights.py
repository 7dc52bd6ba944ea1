"""Weights of chosen precisions, re-read from the final bytes: int4 beside int8 beside float, as it was planned.

Every weight of the float file has a target. Besides its type, its scales and its range, its values are compared: what
the integers stand for may be off by half a step of their own scale, and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.invariants.integers import DYNAMIC_MINIMUM
from squeezeflow.core.tflite import Tensor, TfliteFile, Weight
from squeezeflow.core.tflite.values import FLOATS, constant_values, real_values, scale_values
from squeezeflow.v1 import step_pb2

Array = npt.NDArray[Any]

# Symmetric: the lowest integer has no positive counterpart.
LARGEST = {"int4": 7, "int8": 127}
# Of a step; the scales of blocks are rounded before they are used, the rest is float32.
HALF_STEP = 0.51
# float16 keeps 11 bits.
FLOAT16_RELATIVE = 2.0**-11
SMALLEST_FLOAT16 = 2.0**-24
# How ai-edge-quantizer names the tensor that holds a weight's scales.
BLOCK_SCALES = "_scales"


@dataclass(frozen=True)
class WeightTarget:
    """What one weight of the float file was to become.

    Attributes:
        weight: in the float file.
        dtype: `int4`, `int8`, `float16` or `float32`.
        per_channel: integers: every output channel has a scale of its own; false: one scale in all.
        block_size: integers: this many weights along the last axis share a scale instead; 0: not block-wise.
        reason: why it is not what was asked for; empty where it is.
    """

    weight: Weight
    dtype: str
    per_channel: bool = True
    block_size: int = 0
    reason: str = ""

    @property
    def granularity(self) -> str:
        """How its scales are shared, in words; empty for floats."""
        if self.dtype not in LARGEST:
            return ""
        if self.block_size:
            return f"one scale for {self.block_size} weights"
        return "one scale a channel" if self.per_channel else "one scale"


def weights(file: TfliteFile, targets: Sequence[WeightTarget]) -> step_pb2.Invariant:
    """Holds (as `integer`) when every weight is what was planned for it; large constants that stay float are listed.

    Args:
        file: the final one.
        targets: one for every weight of the float file.
    """
    found = _by_name(file)
    wrong: list[str] = []
    known: set[tuple[int, int]] = set()
    for target in targets:
        tensors = found.get((target.weight.subgraph, target.weight.tensor.name), [])
        known.update((target.weight.subgraph, tensor.index) for tensor in tensors)
        layer = file.layer_of(tensors[0], target.weight.subgraph) if tensors else ""
        place = f"weight {target.weight.tensor.name} of {target.weight.operator}"
        place += f" in layer {layer}" if layer else ""
        problems = [problem for tensor in tensors[:1] for problem in _problems(tensor, target)]
        wrong += [f"{place} {problem}" for problem in (problems if tensors else ["is not in the file"])]
    counts = Counter(" ".join(filter(None, (t.dtype, t.granularity and f"({t.granularity})"))) for t in targets)
    told = [f"{count} of {len(targets)} weights are {what}" for what, count in sorted(counts.items())]
    left = [*_left_float(targets), *_other_constants(file, known)]
    told += [f"left float: {', '.join(left)}"] if left else []
    detail = "; ".join([*wrong, *(told or ["the file has no weights"])])
    return step_pb2.Invariant(name="integer", passed=not wrong, detail=detail)


def _by_name(file: TfliteFile) -> dict[tuple[int, str], list[Tensor]]:
    found: dict[tuple[int, str], list[Tensor]] = {}
    for weight in file.weights:
        found.setdefault((weight.subgraph, weight.tensor.name), []).append(weight.tensor)
    return found


def _problems(tensor: Tensor, target: WeightTarget) -> Iterator[str]:
    if tensor.dtype != target.dtype:
        yield f"is {tensor.dtype} and was to be {target.dtype}"
        return
    source, real = real_values(target.weight.tensor), real_values(tensor)
    if source is None or real is None or source.shape != real.shape:
        yield "cannot be compared with the float file"
        return
    if tensor.dtype in LARGEST:
        yield from _scale_problems(tensor, target)
        yield from _range_problems(tensor)
        limit = HALF_STEP * scale_values(tensor) + 1e-6 * float(np.abs(source).max(initial=0.0))
    elif tensor.dtype == "float16":
        limit = np.abs(source) * FLOAT16_RELATIVE + SMALLEST_FLOAT16
    else:
        limit = np.zeros(())
    off = int((~(np.abs(real - source) <= limit)).sum())
    if off:
        yield f"holds {off} of {tensor.size} values that are not those of the float file, rounded"


def _scale_problems(tensor: Tensor, target: WeightTarget) -> Iterator[str]:
    if tensor.block_size != target.block_size:
        yield f"has blocks of {tensor.block_size} weights and was to have {target.block_size}"
    elif not target.block_size:
        # A look-up table has a scale a row.
        axis = 0 if target.weight.channel_axis is None else target.weight.channel_axis
        channels = tensor.stored_shape[axis] if target.per_channel else 1
        if len(tensor.scales) != channels:
            yield f"has {len(tensor.scales)} scales and was to have {channels}"


def _range_problems(tensor: Tensor) -> Iterator[str]:
    values = constant_values(tensor)
    if any(tensor.zero_points):
        yield "has a zero point other than 0"
    if values is not None and values.size and values.min() < -LARGEST[tensor.dtype]:
        yield f"holds {int(values.min())}, which has no positive counterpart"


def _left_float(targets: Sequence[WeightTarget]) -> Iterator[str]:
    for target in targets:
        if target.dtype == "float32":
            reason = f" ({target.reason})" if target.reason else ""
            yield f"{target.weight.tensor.name} ×{target.weight.tensor.size}{reason}"


def _other_constants(file: TfliteFile, known: set[tuple[int, int]]) -> Iterator[str]:
    for number, graph in enumerate(file.subgraphs):
        for tensor in graph.tensors:
            large = tensor.constant and tensor.dtype in FLOATS and tensor.size >= DYNAMIC_MINIMUM
            # The scales of blocks are no weights.
            if large and (number, tensor.index) not in known and not tensor.name.endswith(BLOCK_SCALES):
                yield f"{tensor.name} ×{tensor.size} (not a weight)"
