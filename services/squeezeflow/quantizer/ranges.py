"""Ranges of fake quantization: where they start, and what they are of kernels in the end.

TFMOT starts the ranges at ±6 and moves those of activations by a thousandth a step: a short training ends with ranges
that have little to do with the model (seen after 8 steps: 6 dB of signal to noise, and 48 dB with ranges that fit). So
activations are looked at in a pass in float before training, and start from what was seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapper

from squeezeflow.core.datasets import BoundData
from squeezeflow.modelkit.finetune import Training
from squeezeflow.v1 import contract_pb2

# Samples whose activations are looked at; TFLite's guide takes 100 to 500 to calibrate.
SAMPLES = 256


def start_ranges(wrapped: Any, bound: BoundData, contract: contract_pb2.Contract, training: Training) -> str:
    """Sets the ranges of a wrapped model from its kernels, and from its activations on train samples; tells which."""
    set_kernel_ranges(wrapped)
    rows = np.random.default_rng(training.seed).permutation(bound.count("train"))[: max(SAMPLES, training.batch_size)]
    whole = len(rows) // training.batch_size * training.batch_size
    rows = np.sort(rows[:whole] if training.whole_batches else rows)
    with _observed(wrapped) as observer:
        for batch in _batches(bound, contract, rows, training.batch_size):
            wrapped(batch[0] if len(batch) == 1 else batch, training=False)
    observer.assign()
    return f"activation ranges start from {len(rows)} samples of train, drawn by seed {training.seed}"


def set_kernel_ranges(wrapped: Any) -> None:
    """Sets the ranges of all kernels from their values, as the next step of training would."""
    for layer in _wrappers(wrapped):
        for kernel, _, variables in layer._weight_vars:
            values, per_channel = np.abs(kernel.numpy()), variables["max_var"].shape.rank
            highest = values.max(axis=tuple(range(values.ndim - 1)) if per_channel else None)
            # A channel of zeros has any range but none.
            highest = np.where(highest > 0, highest, 1.0).astype(values.dtype)
            variables["max_var"].assign(highest)
            variables["min_var"].assign(-highest)


class _Observer:
    """Stands for a quantizer of activations: keeps the lowest and highest value, and leaves them as they are."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, Any, float, float]] = {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        """Looks at a batch."""
        low, high = weights["min_var"], weights["max_var"]
        _, _, least, most = self._seen.get(id(low), (low, high, 0.0, 0.0))
        lowest, highest = float(tf.reduce_min(inputs)), float(tf.reduce_max(inputs))
        self._seen[id(low)] = (low, high, min(least, lowest), max(most, highest))
        return inputs

    def assign(self) -> None:
        """Sets the ranges to what was seen; one that saw zeros only stays."""
        for low, high, least, most in self._seen.values():
            if np.isfinite([least, most]).all() and least < most:
                low.assign(tf.fill(low.shape, least))
                high.assign(tf.fill(high.shape, most))


@contextmanager
def _observed(wrapped: Any) -> Iterator[_Observer]:
    """Puts one observer in the place of every quantizer of activations, as long as it lasts."""
    observer, back = _Observer(), []
    for layer in wrapped.layers:
        # One that feeds a Concatenate has none: its input is quantized together with the other parts.
        if isinstance(layer, QuantizeLayer) and layer.quantizer:
            back.append((layer, "quantizer", layer.quantizer))
    for layer in _wrappers(wrapped):
        back += [(activation, "quantizer", activation.quantizer) for activation in layer._quantize_activations]
        if layer._output_quantizers:
            back.append((layer, "_output_quantizers", layer._output_quantizers))
    try:
        for owner, name, _ in back:
            setattr(owner, name, [observer] if name == "_output_quantizers" else observer)
        yield observer
    finally:
        for owner, name, quantizer in back:
            setattr(owner, name, quantizer)


def _wrappers(wrapped: Any) -> list[Any]:
    return [layer for layer in wrapped.layers if isinstance(layer, QuantizeWrapper)]


def _batches(
    bound: BoundData, contract: contract_pb2.Contract, rows: Sequence[int], size: int
) -> Iterable[list[tf.Tensor]]:
    for start in range(0, len(rows), size):
        arrays = bound.inputs("train", rows[start : start + size])
        yield [tf.constant(arrays[tensor.name], tensor.dtype) for tensor in contract.inputs]
