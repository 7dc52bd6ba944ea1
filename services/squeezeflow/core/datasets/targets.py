"""What the labels of an output are: class ids, one-hot rows or values, and what a row of them looks like.

Which of the three follows from dtype and shape against the output's shape; where an output has one unit, from what the
output means and from the labels themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeezeflow.core.datasets.parts import Parts
from squeezeflow.core.datasets.reading import Array, StoredArray, mismatch, place
from squeezeflow.v1 import contract_pb2

CLASS_IDS, ONE_HOT, VALUES = "class_ids", "one_hot", "values"


@dataclass(frozen=True)
class Targets:
    """The labels of one output in every split that has them."""

    output: contract_pb2.TensorContract
    kind: str
    arrays: Mapping[str, Parts]

    def rows(self, split: str, rows: slice | Array) -> Array:
        """Gives class ids as int64 without a channel axis, one-hot rows and values as float32 in the output's shape."""
        rank = len(self.output.shape)
        wanted, dtype = (max(1, rank - 1), np.int64) if self.kind == CLASS_IDS else (rank, np.float32)
        return self.arrays[split].read(rows, lambda _, values: _with_rank(values, wanted).astype(dtype))


def bind_targets(output: contract_pb2.TensorContract, arrays: Mapping[str, Parts]) -> Targets:
    """Decides what the labels of an output are, from all its splits, and checks every label.

    Errors: DATA_MISMATCH for shapes and dtypes that are none of the three, ids out of range, NaN and infinity, and
    splits that do not agree.
    """
    kinds = {stored.name: _kind(output, stored) for parts in arrays.values() for stored in parts.arrays}
    found = set(kinds.values())
    if CLASS_IDS in found and len(found) > 1 and _units(output) != 1:
        pairs = ", ".join(f"{name} holds {kind}" for name, kind in kinds.items())
        raise mismatch(
            f"labels of output {output.name} differ in kind ({pairs}): store all splits alike", output=output.name
        )
    kind = found.pop() if len(found) == 1 else VALUES
    return Targets(output, kind, dict(arrays))


def _kind(output: contract_pb2.TensorContract, stored: StoredArray) -> str:
    if stored.dtype.kind not in "fiub":
        raise mismatch(
            f"array {stored.name} is {stored.dtype}: labels are class ids, one-hot rows or numbers", array=stored.name
        )
    row, wanted = stored.shape[1:], tuple(output.shape[1:])
    units = _units(output)
    full, short = _fits(row, wanted), _fits(row, wanted[:-1]) or _fits(row, (*wanted[:-1], 1))
    if units == 1 and (full or short):
        return _kind_of_one_unit(output, stored)
    if full:
        _require(stored, np.isfinite, "which is not finite: correct or leave out that sample")
        return ONE_HOT if units != 1 and _all(stored, _rows_are_one_hot) else VALUES
    if short and stored.dtype.kind in "iu":
        limit = units if units is not None else int(np.iinfo(np.int64).max)
        _require(
            stored,
            lambda ids: (ids >= 0) & (ids < limit),
            f"class ids of output {output.name} run from 0" + ("" if units is None else f" to {units - 1}"),
        )
        return CLASS_IDS
    if short:
        raise mismatch(
            f"array {stored.name} is {stored.dtype}: class ids for output {output.name} are integers, one-hot rows "
            f"have its shape {list(output.shape)}",
            array=stored.name,
        )
    raise mismatch(
        f"array {stored.name} has shape {stored.shape}, output {output.name} gives {list(output.shape)}: store class "
        f"ids of shape {[stored.shape[0], *wanted[:-1]]}, or values in the output's shape",
        array=stored.name,
        output=output.name,
    )


def _kind_of_one_unit(output: contract_pb2.TensorContract, stored: StoredArray) -> str:
    _require(stored, np.isfinite, "which is not finite: correct or leave out that sample")
    binary = _all(stored, lambda labels: (labels == 0) | (labels == 1))
    if output.meaning == "values":
        return VALUES
    if output.meaning in ("probabilities", "logits") and stored.dtype.kind in "iub":
        _require(
            stored,
            lambda labels: (labels == 0) | (labels == 1),
            f"output {output.name} has one unit: class ids are 0 and 1",
        )
        return CLASS_IDS
    # Nothing says what the output means: whole numbers that are only 0 and 1 are two classes.
    return CLASS_IDS if binary and (output.meaning or stored.dtype.kind in "iub") else VALUES


def _units(output: contract_pb2.TensorContract) -> int | None:
    """Gives the size of the last axis: 1 where an output has only its batch axis, None where the axis is free."""
    if len(output.shape) < 2:
        return 1
    return int(output.shape[-1]) if output.shape[-1] >= 0 else None


def _fits(row: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(row) == len(wanted) and all(w in (-1, h) for h, w in zip(row, wanted, strict=True))


def _with_rank(values: Array, rank: int) -> Array:
    if values.ndim == rank + 1:
        return values.reshape(values.shape[:-1])
    return values[..., np.newaxis] if values.ndim == rank - 1 else values


def _rows_are_one_hot(rows: Array) -> Array:
    return np.asarray(((rows == 0) | (rows == 1)).all(axis=-1) & (rows.sum(axis=-1) == 1))


def _all(stored: StoredArray, test: Callable[[Array], Any]) -> bool:
    return all(bool(np.all(test(rows))) for _, rows in stored.chunks())


def _require(stored: StoredArray, test: Callable[[Array], Any], what: str) -> None:
    for start, rows in stored.chunks():
        good = np.asarray(test(rows))
        if not good.all():
            position = np.argwhere(~good)[0]
            index = place(start, position.tolist())
            raise mismatch(
                f"array {stored.name} holds {rows[tuple(position)]} at index {index}; {what}",
                array=stored.name,
                index=index,
            )
