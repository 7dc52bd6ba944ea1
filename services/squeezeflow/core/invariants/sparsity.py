"""Zeros of pruned tensors, found again in the final file.

What a kernel keeps on its way from Keras to TFLite is its size and where its zeros are; rounding only adds some. So a
tensor of the file is taken for a kernel when sizes agree, best where its zeros cover the kernel's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.invariants.matching import Fit, find_kernels, layouts
from squeezeflow.core.invariants.places import tensor_names
from squeezeflow.core.tflite import Tensor, TfliteFile
from squeezeflow.core.tflite.values import constant_values
from squeezeflow.core.tflite.weights import count_zeros, is_zero
from squeezeflow.v1 import step_pb2

Array = npt.NDArray[Any]

# Trained weights hold practically no exact zeros; a kernel with fewer than this was not pruned.
PRUNED_SHARE = 0.05


@dataclass(frozen=True)
class SparsityTarget:
    """One pruned kernel.

    Attributes:
        layer: name of its layer.
        values: the kernel after pruning, in Keras' layout.
        sparsity: the share of zeros that was promised, 0 to 1.
    """

    layer: str
    values: Array
    sparsity: float


def needed_zeros(size: int, sparsity: float) -> int:
    """Gives size − round(size · (1 − sparsity)): 115 of 144 at 0.8, since TFMOT rounds the weights that are kept."""
    return size - round(size * (1 - sparsity))


def sparsity_targets(kernels: Mapping[str, Array]) -> tuple[SparsityTarget, ...]:
    """Gives as targets the kernels, by layer name, that hold zeros already: later steps must keep them."""
    shares = {layer: 1 - np.count_nonzero(values) / values.size for layer, values in kernels.items() if values.ndim > 1}
    return tuple(
        SparsityTarget(layer, kernels[layer], share) for layer, share in shares.items() if PRUNED_SHARE <= share < 1
    )


def sparsity(final: TfliteFile | Mapping[str, Array], targets: Sequence[SparsityTarget]) -> step_pb2.Invariant:
    """Holds when every pruned tensor has the zeros that were promised, counted in the final bytes.

    Args:
        final: the file, or the final Keras kernels by layer name.
        targets: the pruned kernels. Those that the file does not hold (a branch without use) are told.
    """
    found = _found_in_file(final, targets) if isinstance(final, TfliteFile) else _found_by_name(final, targets)
    missing = [target.layer for target in targets if target.layer not in found]
    broken: list[str] = []
    reached: list[str] = []
    for target in targets:
        if target.layer in found:
            zeros, size, place = found[target.layer]
            least = needed_zeros(size, target.sparsity)
            text = f"{target.layer} {zeros} of {size} zeros ({zeros / size:.3f}), least {least}"
            if zeros >= least:
                reached.append(text)
            else:
                broken.append(f"{text} {place}".rstrip())
    notes = [f"not in the file: {', '.join(missing)}"] if missing else []
    passed = not broken and (bool(reached) or not targets)
    detail = "; ".join([*broken, *reached, *notes]) or "nothing was pruned"
    return step_pb2.Invariant(name="sparsity", passed=passed, detail=detail)


def _found_by_name(final: Mapping[str, Array], targets: Sequence[SparsityTarget]) -> dict[str, tuple[int, int, str]]:
    return {
        target.layer: (int(np.count_nonzero(final[target.layer] == 0)), final[target.layer].size, "")
        for target in targets
        if target.layer in final
    }


def _found_in_file(file: TfliteFile, targets: Sequence[SparsityTarget]) -> dict[str, tuple[int, int, str]]:
    """Gives (zeros, size, where) in the file by layer."""
    found = find_kernels(file, [(target.layer, target.values) for target in targets], _cover)
    return {
        layer: (sum(count_zeros(part) for part in parts), sum(part.size for part in parts), tensor_names(parts))
        for layer, parts in found.items()
    }


def _cover(kernel: Array) -> Fit:
    """Gives the largest share of a kernel's zeros, over its possible layouts, that are zeros of a tensor."""
    masks = list(layouts(kernel == 0))
    total = int(masks[0].sum())

    def fit(tensor: Tensor) -> float:
        values = constant_values(tensor)
        if values is None or not total:
            return 0.0
        zeros = is_zero(tensor, values).reshape(-1)
        return max(int((zeros & mask).sum()) for mask in masks) / total

    return fit
