"""Constants of a TFLite file as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.tflite.layout import Tensor

Array = npt.NDArray[Any]

# Bits of one element by type name; packed types share bytes, the first element in the lowest bits.
ELEMENT_BITS = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float64": 64,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "int2": 2,
    "int4": 4,
    "uint4": 4,
    "int8": 8,
    "uint8": 8,
    "int16": 16,
    "uint16": 16,
    "int32": 32,
    "uint32": 32,
    "int64": 64,
    "uint64": 64,
    "bool": 8,
    "complex64": 64,
    "complex128": 128,
}
FLOATS = frozenset({"float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2"})
PACKED = frozenset({"int2", "int4", "uint4"})
# Kept as raw bits: numpy has no such type, and distinct values and zeros can be told from the bits.
RAW_BITS = {"float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def constant_values(tensor: Tensor) -> Array | None:
    """Gives the values of a constant in its shape; packed integers as int8 (uint8), bfloat16 as float32.

    None where the tensor is computed, sparse, or holds strings or handles.
    """
    if tensor.sparse:
        return None
    flat = stored_values(tensor)
    return None if flat is None else flat[: tensor.size].reshape(tensor.stored_shape)


def stored_values(tensor: Tensor) -> Array | None:
    """Gives the values that the buffer holds, flat: of a sparse tensor only the blocks that are kept."""
    if tensor.buffer is None or tensor.dtype not in ELEMENT_BITS:
        return None
    if tensor.dtype in PACKED:
        return _unpacked(tensor.buffer, ELEMENT_BITS[tensor.dtype], signed=tensor.dtype.startswith("int"))
    if tensor.dtype == "bfloat16":
        return (np.frombuffer(tensor.buffer, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(tensor.buffer, np.dtype(RAW_BITS.get(tensor.dtype, tensor.dtype)).newbyteorder("<"))


def real_values(tensor: Tensor) -> Array | None:
    """Gives what the values of a constant stand for, as float64 in its shape; None as `constant_values`."""
    values = constant_values(tensor)
    if values is None or not tensor.scales:
        return None if values is None else values.astype(np.float64)
    zero_points = _spread(tensor, tensor.zero_points)
    real: Array = (values.astype(np.float64) - zero_points) * scale_values(tensor)
    return real


def scale_values(tensor: Tensor) -> Array:
    """Gives the scales of a quantized tensor, spread so that they multiply its values: each has its own."""
    return _spread(tensor, tensor.scales)


def _spread(tensor: Tensor, numbers: tuple[float, ...]) -> Array:
    spread = np.asarray(numbers, np.float64)
    if tensor.block_size:
        return np.repeat(spread, tensor.block_size).reshape(tensor.stored_shape)
    if tensor.quantized_dimension >= 0:
        shape = [1] * len(tensor.stored_shape)
        shape[tensor.quantized_dimension] = len(numbers)
        return spread.reshape(shape)
    return spread.reshape(())


def _unpacked(buffer: memoryview, bits: int, *, signed: bool) -> Array:
    packed = np.frombuffer(buffer, np.uint8)
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    values = np.stack(parts, axis=-1).reshape(-1)
    if not signed:
        return values
    half = 1 << (bits - 1)
    return ((values ^ half).astype(np.int8) - np.int8(half)).astype(np.int8)
