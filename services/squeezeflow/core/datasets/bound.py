"""A dataset bound to a contract: rows by split and contract name, as the model takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from squeezeflow.core.datasets.conversion import Conversion
from squeezeflow.core.datasets.parts import Parts
from squeezeflow.core.datasets.reading import Array
from squeezeflow.core.datasets.targets import Targets
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import contract_pb2

SPLITS = ("train", "calibration", "validation", "test")
# Share of train that early stopping watches where there are no validation arrays.
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class BoundInput:
    """The arrays of one input and what turns the rows of each into an input."""

    parts: Parts
    conversions: tuple[Conversion, ...]

    def rows(self, rows: slice | Array) -> Array:
        """Gives rows as the model takes them. Errors: DATA_MISMATCH where they are not of one size."""
        return self.parts.read(rows, lambda part, values: self.conversions[part].apply(values))


@dataclass(frozen=True)
class FitRows:
    """Which rows fit and which ones watch for early stopping.

    Attributes:
        train: row numbers of split `train`.
        validation_split: `validation`, or `train` where a share of it is held out.
        validation: row numbers of that split; empty where train is a single row.
    """

    train: Array
    validation_split: str
    validation: Array


@dataclass(frozen=True)
class BoundData:
    """Checked data, read by rows.

    Attributes:
        notes: what was done automatically, and arrays that are not used.
        labels: label names by class id; empty where the dataset has no `classes`.
        affine: value · scale + offset as the request, else the contract, states it; None where neither does.
    """

    notes: tuple[str, ...]
    labels: tuple[str, ...]
    affine: contract_pb2.Affine | None
    splits: Mapping[str, Mapping[str, BoundInput]]
    all_targets: Mapping[str, Targets]

    def count(self, split: str) -> int:
        """Gives the number of samples of a split, 0 where it is absent."""
        return next((bound.parts.count for bound in self.splits.get(split, {}).values()), 0)

    def has_targets(self, split: str) -> bool:
        """Tells whether any output has labels in a split."""
        return any(split in targets.arrays for targets in self.all_targets.values())

    def target_kind(self, output: str) -> str | None:
        """Gives `class_ids`, `one_hot` or `values`; None where the output has no labels in any split."""
        return self.all_targets[output].kind if output in self.all_targets else None

    def inputs(self, split: str, rows: slice | Array) -> dict[str, Array]:
        """Gives rows of a split by input name, affine applied, in the element type that the model means.

        Errors: DATA_MISMATCH where they are not of one size; see `one_sized`.
        """
        return {name: bound.rows(rows) for name, bound in self.splits[split].items()}

    def targets(self, split: str, rows: slice | Array) -> dict[str, Array]:
        """Gives labels by output name, of the outputs that have some in the split.

        Class ids are int64 without a channel axis; one-hot rows and values are float32 in the output's shape.
        """
        return {
            name: targets.rows(split, rows) for name, targets in self.all_targets.items() if split in targets.arrays
        }

    def one_sized(self, split: str, start: int, stop: int) -> Iterator[slice]:
        """Gives the rows from `start` to `stop` in order, in runs whose samples and labels have one size each."""
        for first, last in self._runs.get(split, ()):
            if first < stop and last > start:
                yield slice(max(first, start), min(last, stop))

    def sizes(self, split: str) -> int:
        """Gives the number of different sizes of the samples of a split."""
        return len({self._size(split, first) for first, _ in self._runs.get(split, ())})

    def require_one_size(self, split: str, why: str) -> None:
        """Refuses a split whose samples differ in size: DATA_MISMATCH naming two arrays, and why it matters."""
        if self.sizes(split) > 1:
            for bound in self.splits[split].values():
                bound.parts.require_one_size(why)
            for targets in self.all_targets.values():
                targets.arrays[split].require_one_size(why)

    @cached_property
    def _runs(self) -> Mapping[str, tuple[tuple[int, int], ...]]:
        """The first row of every run of one size, and the one behind its last, by split."""
        return {split: tuple(self._find_runs(split)) for split in self.splits}

    def _find_runs(self, split: str) -> Iterator[tuple[int, int]]:
        ends = sorted({int(start) for parts in self._parts(split) for start in parts.starts} | {self.count(split)})
        first = 0
        for end in ends[1:]:
            if end == ends[-1] or self._size(split, end) != self._size(split, first):
                yield first, end
                first = end

    def _size(self, split: str, row: int) -> tuple[tuple[int, ...], ...]:
        return tuple(parts.shape_of(row) for parts in self._parts(split))

    def _parts(self, split: str) -> list[Parts]:
        labels = [targets.arrays[split] for targets in self.all_targets.values() if split in targets.arrays]
        return [*(bound.parts for bound in self.splits[split].values()), *labels]

    def calibration(self, count: int, seed: int) -> list[dict[str, Array]]:
        """Gives samples of batch 1: all calibration arrays, where absent `count` of train drawn by seed.

        Errors: DATA_MISSING.
        """
        split = "calibration" if self.count("calibration") else "train"
        if not self.count(split):
            raise SqueezeflowError(
                "DATA_MISSING",
                "calibration needs samples: add x_calibration or x_train to the dataset",
                metadata={"split": "calibration"},
            )
        rows = np.arange(self.count(split)) if split == "calibration" else draw(self.count(split), count, seed)
        return [self.inputs(split, slice(row, row + 1)) for row in rows.tolist()]

    def samples(self, count: int, seed: int) -> tuple[dict[str, Array], str]:
        """Gives a batch of up to `count` samples for comparisons, and the split that they are from.

        The split is the first there is of test, validation, calibration and train. Where sizes differ, the samples have
        the size that most of the split have; `further_samples` has others.
        """
        split = self._compared
        rows = self._rows_of_sizes(split)[0]
        return self.inputs(split, rows[draw(len(rows), count, seed)]), split

    def further_samples(self, count: int, seed: int) -> list[dict[str, Array]]:
        """Gives up to `count` samples of other sizes than those of `samples`, one batch a size.

        Taken from as many sizes as can be, by seed; none where all samples have one size.
        """
        others = self._rows_of_sizes(self._compared)[1:]
        chosen = [others[index] for index in draw(len(others), count, seed)]
        share = max(1, count // max(1, len(chosen)))
        return [self.inputs(self._compared, rows[draw(len(rows), share, seed)]) for rows in chosen]

    @property
    def _compared(self) -> str:
        return next(name for name in ("test", "validation", "calibration", "train") if self.count(name))

    def _rows_of_sizes(self, split: str) -> list[Array]:
        """Gives the row numbers of every size of samples, the most frequent size first."""
        by_size: dict[object, list[Array]] = {}
        for first, last in self._runs[split]:
            size = tuple(bound.parts.shape_of(first) for bound in self.splits[split].values())
            by_size.setdefault(size, []).append(np.arange(first, last))
        return sorted((np.concatenate(rows) for rows in by_size.values()), key=len, reverse=True)

    def fit_rows(self, seed: int) -> FitRows:
        """Gives the rows for fitting and early stopping: validation arrays, where absent 10 % of train by seed.

        Errors: DATA_MISSING without train arrays and labels.
        """
        train = self.count("train")
        if not train or not self.has_targets("train"):
            missing = "y_train" if train else "x_train and y_train"
            raise SqueezeflowError(
                "DATA_MISSING", f"fine-tuning needs {missing}: add to the dataset", metadata={"split": "train"}
            )
        if self.count("validation") and self.has_targets("validation"):
            return FitRows(np.arange(train), "validation", np.arange(self.count("validation")))
        held_out = max(1, round(train * VALIDATION_SHARE)) if train > 1 else 0
        order = np.random.default_rng(seed).permutation(train)
        return FitRows(np.sort(order[held_out:]), "train", np.sort(order[:held_out]))


def draw(population: int, count: int, seed: int) -> Array:
    """Gives up to `count` distinct row numbers in rising order, the same ones for the same seed."""
    rows = np.random.default_rng(seed).choice(population, size=min(count, population), replace=False)
    return np.sort(rows)
