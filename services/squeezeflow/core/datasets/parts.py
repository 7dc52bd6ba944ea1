"""The samples of one input or label of one split: one array, or numbered ones whose samples follow each other.

An array has one size, and the images of one dataset may have many: `x_train_0`, `x_train_1`, … hold those of one size
each. Rows are numbered through all of them, in the order of the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from squeezeflow.core.datasets.reading import Array, StoredArray, mismatch


@dataclass(frozen=True)
class Parts:
    """One array, or several.

    Attributes:
        name: of the array; of numbered ones without the number.
        arrays: in the order of their rows.
        numbers: theirs; empty where the one array has none.
    """

    name: str
    arrays: tuple[StoredArray, ...]
    numbers: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(stored.shape[0] for stored in self.arrays)

    @cached_property
    def starts(self) -> Array:
        """The first row of each array."""
        return np.cumsum([0, *(stored.shape[0] for stored in self.arrays[:-1])])

    def read(self, rows: slice | Array, convert: Callable[[int, Array], Array]) -> Array:
        """Gives rows, in the order asked for.

        Args:
            convert: turns rows of the array at a position into what the caller wants.
        Errors: DATA_MISMATCH where they are not of one size.
        """
        if len(self.arrays) == 1:
            return convert(0, np.asarray(self.arrays[0].values[rows]))
        wanted = np.arange(self.count)[rows]
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        pieces, places = [], []
        for owner in np.unique(owners).tolist() or [0]:
            chosen = np.flatnonzero(owners == owner)
            places.append(chosen)
            pieces.append(convert(owner, np.asarray(self.arrays[owner].values[wanted[chosen] - self.starts[owner]])))
        if len({piece.shape[1:] for piece in pieces}) > 1:
            self.require_one_size("they cannot be put into one batch")
        joined = np.concatenate(pieces)
        ordered = np.empty_like(joined)
        ordered[np.concatenate(places)] = joined
        return ordered

    def shape_of(self, row: int) -> tuple[int, ...]:
        """Gives the shape of one row as it is stored."""
        return self.arrays[int(np.searchsorted(self.starts, row, side="right")) - 1].shape[1:]

    def require_one_size(self, why: str) -> None:
        """Refuses arrays whose rows differ in size: DATA_MISMATCH naming the first two that do, and why it matters."""
        first = self.arrays[0]
        for other in self.arrays:
            if other.shape[1:] != first.shape[1:]:
                raise mismatch(
                    f"arrays {first.name} of {list(first.shape[1:])} and {other.name} of {list(other.shape[1:])} "
                    f"differ in size: {why}",
                    array=other.name,
                )


def parts_of(found: Mapping[int | None, StoredArray]) -> Parts:
    """Puts the arrays of one name together by their numbers; None is the one without."""
    if None in found:
        return Parts(found[None].name, (found[None],))
    numbers = sorted(number for number in found if number is not None)
    arrays = tuple(found[number] for number in numbers)
    return Parts(arrays[0].name.rpartition("_")[0], arrays, tuple(numbers))
