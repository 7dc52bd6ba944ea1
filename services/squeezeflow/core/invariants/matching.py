"""Kernels of a Keras model, found again among the constants of a TFLite file.

A kernel changes on its way: axes move, BatchNormalization scales its channels, quantization rounds it. What stays is
its size. Among constants of that size the one is taken that scores best, by name where scores are equal; fused LSTMs
hold a kernel as four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.tflite import Tensor, TfliteFile

Array = npt.NDArray[Any]
# Says how well a constant fits; made for one kernel.
Fit = Callable[[Tensor], float]

LSTM_GATES = 4


def find_kernels(
    file: TfliteFile, kernels: Sequence[tuple[str, Array]], fit_of: Callable[[Array], Fit]
) -> dict[str, list[Tensor]]:
    """Gives the constants that hold each kernel: one, or an LSTM's four; kernels that the file lacks are absent.

    Args:
        kernels: (layer, values in Keras' layout).
        fit_of: gives, for a kernel or the quarter of one, what scores a constant of the same size.
    """
    constants = [tensor for graph in file.subgraphs for tensor in graph.tensors if tensor.constant and tensor.size > 1]
    # Only an LSTM operator takes a kernel as four, and it takes none whole: one gate of the recurrent kernel may have
    # the size of the whole input kernel, and any other constants that of its quarters.
    in_lstm = {id(weight.tensor) for weight in file.weights if weight.operator.endswith("LSTM")}
    whole = [tensor for tensor in constants if id(tensor) not in in_lstm]
    gates = [tensor for tensor in constants if id(tensor) in in_lstm]
    found: dict[str, list[Tensor]] = {}
    taken: set[int] = set()
    for layer, values in kernels:
        parts = _parts(layer, values, whole, gates, taken, fit_of)
        if parts:
            found[layer] = parts
            taken.update(id(part) for part in parts)
    return found


def layouts(kernel: Array) -> Iterator[Array]:
    """Yields a Keras kernel flat, in every order that TFLite may keep it in."""
    yield kernel.reshape(-1)  # depthwise, embedding, batch matmul, 3-D convolution
    yield np.moveaxis(kernel, -1, 0).reshape(-1)  # convolution and dense: output channels first
    if kernel.ndim > 2:
        yield kernel.reshape(kernel.shape[0], -1).T.reshape(-1)  # attention: heads folded into the output
        yield kernel.reshape(-1, kernel.shape[-1]).T.reshape(-1)  # attention: heads folded into the input
        yield np.moveaxis(kernel, -2, 0).reshape(-1)  # transposed convolution: its outputs come before its inputs


def _parts(
    layer: str,
    values: Array,
    wholes: Sequence[Tensor],
    gates_of_lstm: Sequence[Tensor],
    taken: set[int],
    fit_of: Callable[[Array], Fit],
) -> list[Tensor]:
    """Gives the one tensor that holds a kernel, or the four that hold an LSTM's, or none."""
    whole = _best(layer, [values], wholes, taken, fit_of)
    if values.ndim != 2 or values.shape[1] % LSTM_GATES:
        return whole
    quarters = np.split(values, LSTM_GATES, axis=1)
    gates = _best(layer, quarters, gates_of_lstm, taken, fit_of)
    if not whole or not gates:
        return whole or gates
    # What is stored sparse cannot be scored, and gates never are.
    if whole[0].sparse:
        return whole
    # Beside an LSTM, the kernel of another layer may have four times the size of a gate: sizes alone do not tell.
    fit_of_gates = sum(fit_of(quarter)(gate) for quarter, gate in zip(quarters, gates, strict=True)) / LSTM_GATES
    return whole if fit_of(values)(whole[0]) >= fit_of_gates else gates


def _best(
    layer: str,
    pieces: Sequence[Array],
    constants: Sequence[Tensor],
    taken: set[int],
    fit_of: Callable[[Array], Fit],
) -> list[Tensor]:
    """Gives the constant that most likely is each piece of a kernel; none where one of them has no constant."""
    found: list[Tensor] = []
    for values in pieces:
        same_size = [tensor for tensor in constants if tensor.size == values.size]
        used = taken | {id(tensor) for tensor in found}
        # Equal kernels may share one constant: a second layer then finds nothing that is free.
        free = [tensor for tensor in same_size if id(tensor) not in used] or same_size
        if not free:
            return []
        best = free[0]
        if len(free) > 1:
            fit = fit_of(values)
            best = max(free, key=lambda tensor: (fit(tensor), _named(tensor, layer)))
        found.append(best)
    return found


def _named(tensor: Tensor, layer: str) -> bool:
    return layer in tensor.name.replace(";", "/").split("/")
