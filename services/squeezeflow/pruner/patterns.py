"""Where the zeros of a kernel may lie: anywhere, in blocks, or m of every n weights.

What TFMOT does while a model is trained is done here at once, on the values of one kernel; which kernels a pattern can
take, and what it promises of them, is the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from squeezeflow.core import invariants
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import step_pb2, technique_pb2

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Pattern:
    """How a kernel is pruned.

    Attributes:
        sparsity: share of weights, or of blocks, that become zero.
        block: rows and columns of a block.
        largest: the largest magnitude stands for a block; else the mean.
        m_by_n: so many zeros, of so many weights in a row along the input axis; None: not in groups.
        axis: the input axis.
    """

    sparsity: float
    block: tuple[int, int] = (1, 1)
    largest: bool = False
    m_by_n: tuple[int, int] | None = None
    axis: int = -2

    @property
    def in_blocks(self) -> bool:
        """Whether weights are pruned in blocks."""
        return self.block != (1, 1)

    def describe(self) -> str:
        """Says what is special about it; empty for single weights."""
        if self.m_by_n:
            return f", {self.m_by_n[0]} of {self.m_by_n[1]} along the input axis"
        return f", in blocks of {self.block[0]} × {self.block[1]}" if self.in_blocks else ""


def pattern_of(params: technique_pb2.Prune, sparsity: float, axis: int = -2) -> Pattern:
    """Gives the pattern that a request asks for, for a kernel with a share of zeros of its own."""
    if params.HasField("m_by_n"):
        m, n = params.m_by_n.m, params.m_by_n.n
        return Pattern(m / n, m_by_n=(m, n), axis=axis)
    largest = params.block_pooling == technique_pb2.Prune.BLOCK_POOLING_MAXIMUM
    return Pattern(sparsity, (params.block_height, params.block_width), largest)


def check(params: technique_pb2.Prune) -> None:
    """Refuses parameters that contradict each other.

    Errors: INVALID_PARAMETER naming the field.
    """
    if params.HasField("m_by_n"):
        if params.m_by_n.m >= params.m_by_n.n:
            _refuse("m_by_n.m", f"m_by_n: {params.m_by_n.m} zeros in {params.m_by_n.n} weights leave none, lower m")
        if (params.block_height, params.block_width) != (1, 1):
            _refuse("m_by_n", "m_by_n and blocks are two patterns: leave out m_by_n, or block_height and block_width")
        if params.layer_sparsities:
            _refuse("layer_sparsities", "m_by_n fixes the sparsity of every layer: leave out one of the two")
    elif not params.one_shot and params.schedule == technique_pb2.Prune.SCHEDULE_POLYNOMIAL:
        shares = [("sparsity", params.sparsity)]
        shares += [(f"sparsity for {rule.pattern}", rule.sparsity) for rule in params.layer_sparsities]
        for name, share in shares:
            if params.initial_sparsity > share:
                _refuse(
                    "initial_sparsity",
                    f"initial_sparsity {params.initial_sparsity:g} is above {name} {share:g}: the share of zeros grows "
                    "while the model is pruned, lower initial_sparsity",
                )
    if params.one_shot and params.summaries:
        _refuse("summaries", "summaries tell the sparsity by training step, one_shot does not train: leave one out")


def left_out(pattern: Pattern, shapes: Sequence[Sequence[int]]) -> str:
    """Says why kernels of these shapes cannot be pruned in a pattern; empty where they can."""
    if pattern.m_by_n:
        return next((reason for shape in shapes if (reason := _no_groups(pattern.m_by_n, shape, pattern.axis))), "")
    if pattern.in_blocks and any(len(shape) != 2 for shape in shapes):
        return f"blocks are for matrices, its kernel has {max(len(shape) for shape in shapes)} axes"
    height, width = pattern.block
    unit = "blocks" if pattern.in_blocks else "weights"
    smallest = min(_blocks(shape, height, width) if pattern.in_blocks else math.prod(shape) for shape in shapes)
    if round(smallest * (1 - pattern.sparsity)) < 1:
        return f"too few {unit} ({smallest}) to leave any at sparsity {pattern.sparsity:g}"
    return ""


def in_one_row(pattern: Pattern, shape: Sequence[int]) -> bool:
    """Tells whether a kernel has blocks in one row or one column only."""
    return pattern.in_blocks and any(size <= length for size, length in zip(shape, pattern.block, strict=True))


def prune(kernel: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Gives a kernel with its smallest magnitudes set to zero; what is left keeps its value."""
    magnitudes = np.abs(kernel.astype(np.float64))
    if pattern.m_by_n:
        kept = _largest_of_groups(magnitudes, *pattern.m_by_n, pattern.axis)
    elif pattern.in_blocks:
        kept = _largest_blocks(magnitudes, pattern)
    else:
        kept = _largest(magnitudes, pattern.sparsity)
    return np.where(kept, kernel, np.zeros((), kernel.dtype))


def promise(kernels: Arrays, patterns: Mapping[str, Pattern]) -> step_pb2.Invariant:
    """Gives the invariant `sparsity` of the final kernels.

    Args:
        kernels: by name.
        patterns: how each was pruned; all in the same way, with other shares and axes.
    """
    first = next(iter(patterns.values()))
    if first.m_by_n:
        axes = {name: pattern.axis for name, pattern in patterns.items()}
        return invariants.m_by_n_sparsity(kernels, *first.m_by_n, axes)
    shares = {name: pattern.sparsity for name, pattern in patterns.items()}
    if first.in_blocks:
        return invariants.block_sparsity(kernels, shares, *first.block)
    targets = [invariants.SparsityTarget(name, values, shares[name]) for name, values in kernels.items()]
    return invariants.sparsity(kernels, targets)


def _largest(magnitudes: np.ndarray, sparsity: float) -> np.ndarray:
    kept = np.zeros(magnitudes.size, bool)
    order = np.argsort(-magnitudes.reshape(-1), kind="stable")
    kept[order[: magnitudes.size - invariants.needed_zeros(magnitudes.size, sparsity)]] = True
    return kept.reshape(magnitudes.shape)


def _largest_of_groups(magnitudes: np.ndarray, m: int, n: int, axis: int) -> np.ndarray:
    rows = np.moveaxis(magnitudes, axis, -1)
    size = rows.shape[-1]
    # Below every magnitude: what fills up the last group is dropped first.
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -size % n)], constant_values=-1.0)
    groups = padded.reshape(-1, n)
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, np.argsort(-groups, axis=-1, kind="stable")[:, : n - m], True, axis=-1)
    return np.moveaxis(kept.reshape(padded.shape)[..., :size], -1, axis)


def _largest_blocks(magnitudes: np.ndarray, pattern: Pattern) -> np.ndarray:
    (rows, columns), (height, width) = magnitudes.shape, pattern.block
    padding = [(0, -rows % height), (0, -columns % width)]

    def by_block(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values, padding)
        return padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)

    if pattern.largest:
        pooled = by_block(magnitudes).max(axis=(1, 3))
    else:
        pooled = by_block(magnitudes).sum(axis=(1, 3)) / by_block(np.ones_like(magnitudes)).sum(axis=(1, 3))
    kept = _largest(pooled, pattern.sparsity)
    return kept.repeat(height, axis=0).repeat(width, axis=1)[:rows, :columns]


def _no_groups(m_by_n: tuple[int, int], shape: Sequence[int], axis: int) -> str:
    m, n = m_by_n
    if len(shape) not in (2, 4):
        return f"m of n is for kernels with 2 or 4 axes, its kernel has {len(shape)}"
    if shape[axis] <= n - m:
        return f"its input axis has {shape[axis]} weights, no more than the {n - m} of {n} that stay"
    return ""


def _blocks(shape: Sequence[int], height: int, width: int) -> int:
    return math.ceil(shape[0] / height) * math.ceil(shape[1] / width)


def _refuse(field: str, message: str) -> None:
    raise SqueezeflowError("INVALID_PARAMETER", message, fields=[(f"params.{field}", message)])
