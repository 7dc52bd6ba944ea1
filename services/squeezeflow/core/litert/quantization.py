"""Real values to the integers of a file and back: real = (value − zero point) · scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.tflite import Tensor

Array = npt.NDArray[Any]


def is_quantized(tensor: Tensor) -> bool:
    """Tells whether a tensor's integers stand for real values."""
    return len(tensor.scales) == 1 and tensor.scales[0] > 0 and np.dtype(tensor.dtype).kind in "iu"


def quantize(real: Array, tensor: Tensor) -> Array:
    """Gives the file's integers: rounded half away from zero as LiteRT's QUANTIZE does, saturated at both ends."""
    steps = np.asarray(real, dtype=np.float64) / tensor.scales[0]
    rounded = np.trunc(steps + np.copysign(0.5, steps)) + tensor.zero_points[0]
    limits = np.iinfo(tensor.dtype)
    quantized: Array = np.clip(rounded, limits.min, limits.max).astype(tensor.dtype)
    return quantized


def dequantize(values: Array, tensor: Tensor) -> Array:
    """Gives the real values as float32."""
    return ((values.astype(np.float64) - tensor.zero_points[0]) * tensor.scales[0]).astype(np.float32)
