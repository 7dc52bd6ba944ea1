"""Batches for fitting: the same ones from memory and from disk, in the structure that the model takes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.modelkit import keras_source
from squeezeflow.modelkit.batches import fit_batches


def bound(folder: Path, contract: Any, **arrays: np.ndarray) -> BoundData:
    np.savez(folder / "data.npz", **arrays)
    return Dataset.open(folder / "data.npz").bind(contract)


def model(*, named: bool = False) -> Any:
    import tf_keras

    layers = tf_keras.layers
    inputs = {"b": tf_keras.Input((2,), name="b"), "a": tf_keras.Input((2,), name="a")}
    merged = layers.Concatenate()([inputs["b"], inputs["a"]])
    outputs = {
        "two": layers.Dense(1, activation="sigmoid", name="two")(merged),
        "one": layers.Dense(3, name="one")(merged),
    }
    if named:
        return tf_keras.Model(inputs, outputs)
    return tf_keras.Model(list(inputs.values()), list(outputs.values()))


ROWS = np.arange(14, dtype=np.float32).reshape(7, 2)


@pytest.mark.parametrize("named", [False, True], ids=["lists", "dicts"])
def test_memory_and_disk_give_the_same_batches(tmp_path: Path, named: bool) -> None:
    built = model(named=named)
    contract = keras_source.of_model(built).contract
    data = bound(
        tmp_path,
        contract,
        a_train=ROWS,
        b_train=-ROWS,
        **{"y.one_train": np.arange(7) % 3, "y.two_train": np.arange(7) % 2},
    )
    both = [
        fit_batches(built, data, contract, split="train", batch_size=3, shuffle_seed=5, memory_bytes=memory)
        for memory in (1 << 20, 0)
    ]
    held, streamed = (list(islice(batches.as_numpy_iterator(), 6)) for batches in both)
    np.testing.assert_equal(held, streamed)
    x, y = held[0]
    a, b = (x["a"], x["b"]) if named else (x[1], x[0])
    np.testing.assert_array_equal(a, -b)
    assert y["two"].shape == (3, 1), "ids of one unit stand in a column"
    np.testing.assert_array_equal(y["one"], (a[:, 0] / 2) % 3)
    np.testing.assert_array_equal(y["two"][:, 0], (a[:, 0] / 2) % 2)


def test_every_epoch_has_another_order_and_every_row_once(tmp_path: Path) -> None:
    import tf_keras

    single = tf_keras.Sequential([tf_keras.Input((2,), name="x"), tf_keras.layers.Dense(1, name="y")])
    contract = keras_source.of_model(single).contract
    data = bound(tmp_path, contract, x_train=ROWS, y_train=ROWS[:, 0], x_validation=ROWS, y_validation=ROWS[:, 1])

    def rows(**options: Any) -> list[list[float]]:
        batches = fit_batches(single, data, contract, batch_size=3, **options)
        values = [x[:, 0] for x, _ in islice(batches.as_numpy_iterator(), 6)]
        return [np.concatenate(values[start : start + 3]).tolist() for start in range(0, len(values), 3)]

    first, second = rows(split="train", shuffle_seed=5)
    assert sorted(first) == sorted(second) == ROWS[:, 0].tolist()
    assert first != second
    assert rows(split="train", shuffle_seed=5) == [first, second]
    assert rows(split="train", shuffle_seed=6) != [first, second]
    assert rows(split="validation") == [ROWS[:, 0].tolist()]


@pytest.mark.parametrize("whole", [False, True], ids=["all samples", "whole batches"])
@pytest.mark.parametrize("memory", [1 << 20, 0], ids=["memory", "disk"])
def test_an_epoch_goes_on_inside_of_it_with_the_batches_that_are_left(tmp_path: Path, memory: int, whole: bool) -> None:
    built = model()
    contract = keras_source.of_model(built).contract
    labels = {"y.one_train": np.arange(7) % 3, "y.two_train": np.arange(7) % 2}
    data = bound(tmp_path, contract, a_train=ROWS, b_train=-ROWS, **labels)
    options: dict[str, Any] = {"split": "train", "batch_size": 2, "whole": whole, "shuffle_seed": 5}
    steps = 3 if whole else 4
    all_of_it = fit_batches(built, data, contract, **options, memory_bytes=memory)
    rest = fit_batches(built, data, contract, **options, first_epoch=1, first_batch=2, memory_bytes=memory)
    expected = list(islice(all_of_it.as_numpy_iterator(), 3 * steps))[steps + 2 :]
    np.testing.assert_equal(list(islice(rest.as_numpy_iterator(), len(expected))), expected)
    assert [len(y["two"]) for _, y in expected[-steps:]] == [2] * 3 + [1] * (not whole)
