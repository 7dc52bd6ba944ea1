"""How stored values become the model's inputs: one explicit affine, lossless casts, one missing channel axis.

Nothing is guessed from the values: 0…255 pixels for a model trained on 0…1 run without an error and give garbage. So a
uint8 array for a float input needs a scale, and every automatic change is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeezeflow.core.contracts import real_dtype
from squeezeflow.core.datasets.reading import Array, StoredArray, mismatch, place
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import contract_pb2


@dataclass(frozen=True)
class Conversion:
    """What is done to the rows of one array: add the channel axis, apply the affine, cast."""

    dtype: np.dtype[Any]
    add_channel: bool
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()

    def apply(self, rows: Array) -> Array:
        """Gives rows as the model takes them."""
        if self.add_channel:
            rows = rows[..., np.newaxis]
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found by `check`
            if self.scale:
                # In float64: a rounded scale times a large integer is off by more than the final rounding.
                rows = rows.astype(np.float64) * np.asarray(self.scale) + np.asarray(self.offset)
            return np.ascontiguousarray(rows, dtype=self.dtype)


def request_affine(scale: Sequence[float], offset: Sequence[float]) -> contract_pb2.Affine | None:
    """Gives the affine of a request, None where neither is given.

    Errors: INVALID_PARAMETER for numbers that are not finite and for a scale of 0.
    """
    if not len(scale) and not len(offset):
        return None
    for field, numbers in (("scale", scale), ("offset", offset)):
        if not np.all(np.isfinite(np.asarray(numbers, dtype=np.float64))):
            raise invalid(field, f"{field} {list(numbers)} is not finite: give numbers")
    if any(number == 0 for number in scale):
        raise invalid("scale", "scale 0 makes every value the same: give the factor from stored to model values")
    return contract_pb2.Affine(scale=scale or (1.0,), offset=offset or (0.0,))


def invalid(field: str, message: str) -> SqueezeflowError:
    """Gives an INVALID_PARAMETER about a field of the request."""
    return SqueezeflowError("INVALID_PARAMETER", message, fields=[(field, message)])


def require_numeric(tensor: contract_pb2.TensorContract) -> np.dtype[Any]:
    """Gives the element type that the model takes for an input.

    Errors: UNSUPPORTED_INPUT for strings and complex numbers, and for inputs without a batch axis.
    """
    name = real_dtype(tensor)
    if name in ("string", "complex64", "bfloat16"):
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"input {tensor.name} takes {name}: export the model with numeric inputs",
            metadata={"input": tensor.name, "dtype": name},
        )
    if not tensor.shape:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"input {tensor.name} is a scalar: export the model with a batch axis first",
            metadata={"input": tensor.name},
        )
    return np.dtype(name)


def conversion_for(
    stored: StoredArray, tensor: contract_pb2.TensorContract, affine: contract_pb2.Affine | None, *, scaled: bool
) -> tuple[Conversion, list[str]]:
    """Decides how an array becomes an input, from its header alone, and what of that is to be told.

    Args:
        affine: applied to float inputs; None: values are taken as they are.
        scaled: whether the affine states a scale, which uint8 arrays for float inputs need.
    Errors: DATA_MISMATCH (dtype, rank, shape), INVALID_PARAMETER (channels of the affine).
    """
    target = require_numeric(tensor)
    add_channel = _channel_missing(stored, tensor)
    notes = ["one trailing channel axis was added"] if add_channel else []
    _require_kind(stored, tensor, target, scaled=scaled)
    if target.kind == "f" and affine is not None and not _is_identity(affine):
        channels = 1 if add_channel else stored.shape[-1]
        scale, offset = _per_channel(affine, channels, stored, tensor)
        return Conversion(target, add_channel, scale, offset), notes
    if stored.dtype != target:
        notes.append(f"{stored.dtype} was cast to {target}")
    return Conversion(target, add_channel), notes


def check_values(stored: StoredArray, conversion: Conversion) -> None:
    """Reads a whole array, in pieces where it is memory-mapped, and checks what the model will see of it.

    Errors: DATA_MISMATCH with the index of the first NaN, infinity, or number that the cast would change.
    """
    if stored.dtype.kind in "iu" and not conversion.scale:
        low, high = _exact_range(conversion.dtype)
        if np.iinfo(stored.dtype).min < low or np.iinfo(stored.dtype).max > high:
            for start, rows in stored.chunks():
                outside = (rows < low) | (rows > high)
                _require_none(outside, rows, stored, start, f"which {conversion.dtype} cannot hold exactly")
    elif stored.dtype.kind == "f" or not _affine_stays_finite(stored.dtype, conversion):
        for start, rows in stored.chunks():
            infinite = ~np.isfinite(conversion.apply(rows))
            _require_none(infinite, rows, stored, start, "which is not finite in the model's input space")
    # Even where the dtype says that all is well: a damaged array is found now and not after the training.
    _ = stored.values


def _require_none(bad: Array, rows: Array, stored: StoredArray, start: int, what: str) -> None:
    if bad.any():
        position = np.argwhere(bad)[0][: rows.ndim]
        index = place(start, position.tolist())
        raise mismatch(
            f"array {stored.name} holds {rows[tuple(position)]} at index {index}, {what}: correct or drop that sample",
            array=stored.name,
            index=index,
        )


def _exact_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    # Floats hold every integer up to 2^(mantissa bits), and only some beyond.
    if dtype.kind == "f":
        limit = 2 ** (np.finfo(dtype).nmant + 1)
        return -limit, limit
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _affine_stays_finite(dtype: np.dtype[Any], conversion: Conversion) -> bool:
    if dtype.kind == "b":
        return True
    channels = max(len(conversion.scale), len(conversion.offset))
    ends = np.asarray([[np.iinfo(dtype).min] * channels, [np.iinfo(dtype).max] * channels])
    return bool(np.isfinite(Conversion(conversion.dtype, False, conversion.scale, conversion.offset).apply(ends)).all())


def _channel_missing(stored: StoredArray, tensor: contract_pb2.TensorContract) -> bool:
    wanted, have = tuple(tensor.shape), stored.shape
    if _fits(have, wanted):
        return False
    if wanted[-1] == 1 and len(wanted) > 1 and _fits((*have, 1), wanted):
        return True
    raise mismatch(
        f"array {stored.name} has shape {have}, input {tensor.name} takes {list(wanted)}, -1 is free: store it so",
        array=stored.name,
        input=tensor.name,
    )


def _fits(have: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    # Axis 0 counts samples, whatever batch the model was built for.
    return len(have) == len(wanted) and all(w in (-1, h) for h, w in zip(have[1:], wanted[1:], strict=True))


def _require_kind(
    stored: StoredArray, tensor: contract_pb2.TensorContract, target: np.dtype[Any], *, scaled: bool
) -> None:
    kind = stored.dtype.kind
    where = {"array": stored.name, "input": tensor.name}
    if kind not in "fiub" or (target.kind != "f" and kind == "f") or (target.kind == "b" and kind != "b"):
        raise mismatch(
            f"array {stored.name} is {stored.dtype}, input {tensor.name} takes {target}: store it as {target}", **where
        )
    if target.kind == "f" and stored.dtype == np.uint8 and not scaled:
        raise mismatch(
            f"array {stored.name} is uint8 and input {tensor.name} takes {target}: say how bytes become its values, "
            "--scale 1/255 for 0 to 1, or --scale 1 for 0 to 255",
            **where,
        )


def _is_identity(affine: contract_pb2.Affine) -> bool:
    return all(number == 1 for number in affine.scale) and all(number == 0 for number in affine.offset)


def _per_channel(
    affine: contract_pb2.Affine, channels: int, stored: StoredArray, tensor: contract_pb2.TensorContract
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for field, numbers in (("scale", affine.scale), ("offset", affine.offset)):
        if len(numbers) not in (1, channels):
            raise invalid(
                field,
                f"{field} has {len(numbers)} numbers, array {stored.name} for input {tensor.name} has {channels} "
                "channels on its last axis: give one number, or one a channel",
            )
    return tuple(affine.scale), tuple(affine.offset)
