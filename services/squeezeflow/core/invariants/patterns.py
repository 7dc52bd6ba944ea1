"""Zeros in a pattern: m of every n weights in a row, or whole blocks; counted in the kernels of the final file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.invariants.sparsity import needed_zeros
from squeezeflow.v1 import step_pb2

Array = npt.NDArray[Any]


def crowded_groups(kernel: Array, m: int, n: int, axis: int) -> tuple[int, int]:
    """Counts the groups of n weights along an axis that hold more than n − m non-zeros, and all groups.

    Where the axis is no multiple of n, its last group is filled up with zeros: so it is pruned, too.
    """
    rows = np.moveaxis(kernel != 0, axis, -1)
    padding = [(0, 0)] * (rows.ndim - 1) + [(0, -rows.shape[-1] % n)]
    counts = np.pad(rows, padding).reshape(-1, n).sum(axis=-1)
    return int((counts > n - m).sum()), counts.size


def zero_blocks(kernel: Array, height: int, width: int) -> tuple[int, int]:
    """Counts the blocks of a matrix that are all zero, and all blocks; those at the edges may be smaller."""
    rows, columns = kernel.shape
    padded = np.pad(kernel != 0, [(0, -rows % height), (0, -columns % width)])
    blocks = padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width).any(axis=(1, 3))
    return int((~blocks).sum()), blocks.size


def m_by_n_sparsity(
    kernels: Mapping[str, Array], m: int, n: int, axes: Mapping[str, int] | None = None
) -> step_pb2.Invariant:
    """Holds when every n weights in a row along the input axis have at least m zeros.

    Args:
        kernels: the final kernels by layer name, in the layout of the model.
        m, n: zeros in every group, and its size.
        axes: by layer name, the input axis where it is not the last but one.
    """
    broken: list[str] = []
    reached: list[str] = []
    for layer, kernel in kernels.items():
        crowded, groups = crowded_groups(kernel, m, n, (axes or {}).get(layer, -2))
        text = f"{layer} {crowded} of {groups} groups of {n} weights with fewer than {m} zeros"
        if crowded:
            broken.append(text)
        else:
            reached.append(f"{layer} {m} of {n} in all of {groups} groups ({np.mean(kernel == 0):.3f})")
    return _invariant(broken, reached)


def block_sparsity(
    kernels: Mapping[str, Array], sparsities: Mapping[str, float], height: int, width: int
) -> step_pb2.Invariant:
    """Holds when every kernel has as many blocks of zeros as were promised, rounded as single weights are.

    Args:
        kernels: the final kernels by layer name; matrices.
        sparsities: by layer name, the share of blocks that was promised.
        height, width: rows and columns of a block.
    """
    broken: list[str] = []
    reached: list[str] = []
    for layer, kernel in kernels.items():
        zeros, blocks = zero_blocks(kernel, height, width)
        least = needed_zeros(blocks, sparsities[layer])
        text = (
            f"{layer} {zeros} of {blocks} blocks of {height} × {width} are zero ({zeros / blocks:.3f}), least {least}"
        )
        (reached if zeros >= least else broken).append(text)
    return _invariant(broken, reached)


def _invariant(broken: list[str], reached: list[str]) -> step_pb2.Invariant:
    detail = "; ".join([*broken, *reached]) or "nothing was pruned"
    return step_pb2.Invariant(name="sparsity", passed=not broken, detail=detail)
