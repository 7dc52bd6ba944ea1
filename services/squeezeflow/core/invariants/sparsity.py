"""Zeros of pruned tensors, found again in the final file.

A kernel changes on its way from Keras to TFLite: axes move, BatchNormalization scales it, rounding adds zeros. What
stays is its size and where its zeros are. So a tensor of the file is taken for a kernel when sizes agree, best where
its zeros cover the kernel's and its name holds the layer's; fused LSTMs hold a kernel as four.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.tflite import Tensor, TfliteFile
from squeezeflow.core.tflite.values import constant_values
from squeezeflow.core.tflite.weights import count_zeros, is_zero
from squeezeflow.v1 import step_pb2

Array = npt.NDArray[Any]

# Trained weights hold practically no exact zeros; a kernel with fewer than this was not pruned.
PRUNED_SHARE = 0.05
LSTM_GATES = 4


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
            zeros, size = found[target.layer]
            least = needed_zeros(size, target.sparsity)
            text = f"{target.layer} {zeros} of {size} zeros ({zeros / size:.3f}), least {least}"
            (reached if zeros >= least else broken).append(text)
    notes = [f"not in the file: {', '.join(missing)}"] if missing else []
    passed = not broken and (bool(reached) or not targets)
    detail = "; ".join([*broken, *reached, *notes]) or "nothing was pruned"
    return step_pb2.Invariant(name="sparsity", passed=passed, detail=detail)


def _found_by_name(final: Mapping[str, Array], targets: Sequence[SparsityTarget]) -> dict[str, tuple[int, int]]:
    return {
        target.layer: (int(np.count_nonzero(final[target.layer] == 0)), final[target.layer].size)
        for target in targets
        if target.layer in final
    }


def _found_in_file(file: TfliteFile, targets: Sequence[SparsityTarget]) -> dict[str, tuple[int, int]]:
    """Gives (zeros, size) in the file by layer."""
    constants = [tensor for graph in file.subgraphs for tensor in graph.tensors if tensor.constant and tensor.size > 1]
    found: dict[str, tuple[int, int]] = {}
    taken: set[int] = set()
    for target in targets:
        whole = _best(target.layer, target.values, constants, taken)
        parts = [whole] if whole is not None else _gates(target, constants, taken)
        if parts:
            found[target.layer] = (sum(count_zeros(part) for part in parts), sum(part.size for part in parts))
    return found


def _gates(target: SparsityTarget, constants: Sequence[Tensor], taken: set[int]) -> list[Tensor]:
    """Gives the four tensors that hold an LSTM kernel, or none."""
    if target.values.ndim != 2 or target.values.shape[1] % LSTM_GATES:
        return []
    quarters = np.split(target.values, LSTM_GATES, axis=1)
    found = [_best(target.layer, quarter, constants, taken) for quarter in quarters]
    return [tensor for tensor in found if tensor is not None] if None not in found else []


def _best(layer: str, values: Array, constants: Sequence[Tensor], taken: set[int]) -> Tensor | None:
    """Gives the constant that most likely is a kernel, and marks it as taken."""
    same_size = [tensor for tensor in constants if tensor.size == values.size]
    # Equal kernels may share one constant: a second layer then finds nothing that is free.
    free = [tensor for tensor in same_size if id(tensor) not in taken] or same_size
    if not free:
        return None
    masks = list(_layouts(values == 0))
    best = max(free, key=lambda tensor: (_cover(tensor, masks), _named(tensor, layer)))
    taken.add(id(best))
    return best


def _cover(tensor: Tensor, masks: Sequence[Array]) -> float:
    """Gives the largest share of a kernel's zeros, over its possible layouts, that are zeros of a tensor."""
    values = constant_values(tensor)
    total = int(masks[0].sum())
    if values is None or not total:
        return 0.0
    zeros = is_zero(tensor, values).reshape(-1)
    return max(int((zeros & mask).sum()) for mask in masks) / total


def _named(tensor: Tensor, layer: str) -> bool:
    return layer in tensor.name.replace(";", "/").split("/")


def _layouts(kernel: Array) -> Iterator[Array]:
    """Yields a Keras kernel flat, in every order that TFLite may keep it in."""
    yield kernel.reshape(-1)  # depthwise, embedding, batch matmul, 3-D convolution
    yield np.moveaxis(kernel, -1, 0).reshape(-1)  # convolution and dense: output channels first
    if kernel.ndim > 2:
        yield kernel.reshape(kernel.shape[0], -1).T.reshape(-1)  # attention: heads folded into the output
        yield kernel.reshape(-1, kernel.shape[-1]).T.reshape(-1)  # attention: heads folded into the input
        yield np.moveaxis(kernel, -2, 0).reshape(-1)  # transposed convolution: its outputs come before its inputs
