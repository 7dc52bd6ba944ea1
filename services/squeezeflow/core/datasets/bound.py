"""A dataset bound to a contract: rows by split and contract name, as the model takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from squeezeflow.core.datasets.conversion import Conversion
from squeezeflow.core.datasets.reading import Array, StoredArray
from squeezeflow.core.datasets.targets import Targets
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import contract_pb2

SPLITS = ("train", "calibration", "validation", "test")
# Share of train that early stopping watches where there are no validation arrays.
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class BoundInput:
    """One array and what turns its rows into an input."""

    stored: StoredArray
    conversion: Conversion


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
        return next((bound.stored.shape[0] for bound in self.splits.get(split, {}).values()), 0)

    def has_targets(self, split: str) -> bool:
        """Tells whether any output has labels in a split."""
        return any(split in targets.arrays for targets in self.all_targets.values())

    def target_kind(self, output: str) -> str | None:
        """Gives `class_ids`, `one_hot` or `values`; None where the output has no labels in any split."""
        return self.all_targets[output].kind if output in self.all_targets else None

    def inputs(self, split: str, rows: slice | Array) -> dict[str, Array]:
        """Gives rows of a split by input name, affine applied, in the element type that the model means."""
        return {
            name: bound.conversion.apply(np.asarray(bound.stored.values[rows]))
            for name, bound in self.splits[split].items()
        }

    def targets(self, split: str, rows: slice | Array) -> dict[str, Array]:
        """Gives labels by output name, of the outputs that have some in the split.

        Class ids are int64 without a channel axis; one-hot rows and values are float32 in the output's shape.
        """
        return {
            name: targets.rows(split, rows) for name, targets in self.all_targets.items() if split in targets.arrays
        }

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

        The split is the first there is of test, validation, calibration and train.
        """
        split = next(name for name in ("test", "validation", "calibration", "train") if self.count(name))
        return self.inputs(split, draw(self.count(split), count, seed)), split

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
