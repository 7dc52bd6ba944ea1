"""Datasets whose samples differ in size: numbered arrays, read as one split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import contract_pb2

IMAGES = contract_pb2.Contract(
    inputs=[contract_pb2.TensorContract(name="image", shape=[-1, -1, -1, 1], dtype="float32")],
    outputs=[contract_pb2.TensorContract(name="label", shape=[-1, 3], dtype="float32", meaning="probabilities")],
)
MASKS = contract_pb2.Contract(
    inputs=IMAGES.inputs,
    outputs=[contract_pb2.TensorContract(name="mask", shape=[-1, -1, -1, 2], dtype="float32")],
)


def images(count: int, height: int, width: int) -> np.ndarray:
    """Gives images whose values count up, so that every row is known by its values."""
    return np.arange(count * height * width, dtype=np.float32).reshape(count, height, width, 1)


@pytest.fixture(params=["npz", "folder"])
def bind(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def bind(contract: contract_pb2.Contract = IMAGES, **arrays: np.ndarray) -> BoundData:
        path = tmp_path / "data"
        if request.param == "npz":
            path = tmp_path / "data.npz"
            np.savez(path, **arrays)
        else:
            path.mkdir()
            for name, array in arrays.items():
                np.save(path / f"{name}.npy", array)
        return Dataset.open(path).bind(contract)

    return bind


def refusal(bind: Any, contract: contract_pb2.Contract = IMAGES, **arrays: np.ndarray) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError, match="DATA_MISMATCH") as caught:
        bind(contract, **arrays)
    return caught.value


def test_rows_are_numbered_through_the_arrays_in_the_order_of_their_numbers(bind: Any) -> None:
    small, wide, tall = images(2, 4, 4), images(3, 4, 6), images(1, 9, 4)
    bound = bind(x_test_10=tall, x_test_2=wide, x_test_0=small, y_test=np.array([0, 1, 2, 0, 1, 2]))
    assert bound.count("test") == 6
    assert bound.sizes("test") == 3
    np.testing.assert_array_equal(bound.inputs("test", slice(1, 2))["image"], small[1:])
    np.testing.assert_array_equal(bound.inputs("test", np.array([4, 2]))["image"], wide[[2, 0]])
    np.testing.assert_array_equal(bound.inputs("test", slice(5, None))["image"], tall)
    assert bound.notes == ()


def test_rows_come_in_runs_of_one_size(bind: Any) -> None:
    bound = bind(x_test_0=images(2, 4, 4), x_test_1=images(3, 4, 4), x_test_2=images(2, 5, 4), x_test_3=images(1, 4, 4))
    assert bound.sizes("test") == 2
    assert list(bound.one_sized("test", 0, 8)) == [slice(0, 5), slice(5, 7), slice(7, 8)]
    assert list(bound.one_sized("test", 3, 6)) == [slice(3, 5), slice(5, 6)]
    first = bound.inputs("test", slice(0, 5))["image"]
    np.testing.assert_array_equal(first, np.concatenate([images(2, 4, 4), images(3, 4, 4)]))


def test_arrays_of_one_size_are_one_array(bind: Any) -> None:
    bound = bind(
        x_train_0=images(2, 4, 4), x_train_1=images(3, 4, 4), y_train_0=np.array([0, 1]), y_train_1=np.zeros(3, int)
    )
    rows = np.array([4, 0, 2, 1])
    whole = np.concatenate([images(2, 4, 4), images(3, 4, 4)])
    np.testing.assert_array_equal(bound.inputs("train", rows)["image"], whole[rows])
    np.testing.assert_array_equal(bound.targets("train", rows)["label"], [0, 0, 0, 1])
    bound.require_one_size("train", "it is needed")


def test_rows_of_two_sizes_are_no_batch(bind: Any) -> None:
    bound = bind(x_train_0=images(2, 4, 4), x_train_1=images(3, 5, 4), y_train=np.zeros(5, int))
    for read in (lambda: bound.inputs("train", slice(1, 3)), lambda: bound.require_one_size("train", "it is needed")):
        with pytest.raises(SqueezeflowError, match=r"x_train_0 of \[4, 4, 1\] and x_train_1 of \[5, 4, 1\] differ"):
            read()


def test_calibration_takes_samples_of_every_size(bind: Any) -> None:
    bound = bind(x_calibration_0=images(2, 4, 4), x_calibration_1=images(3, 5, 4))
    assert [sample["image"].shape for sample in bound.calibration(1, 0)] == [(1, 4, 4, 1)] * 2 + [(1, 5, 4, 1)] * 3


def test_comparisons_take_the_size_that_most_have_and_then_others(bind: Any) -> None:
    arrays = {f"x_test_{n}": images(count, 4 + n, 4) for n, count in enumerate((2, 9, 4))}
    bound = bind(**arrays)
    samples, split = bound.samples(8, 0)
    assert (split, samples["image"].shape) == ("test", (8, 5, 4, 1))
    assert sorted(batch["image"].shape for batch in bound.further_samples(6, 0)) == [(2, 4, 4, 1), (3, 6, 4, 1)]
    assert [len(batch["image"]) for batch in bound.further_samples(1, 0)] == [1]


def test_labels_that_follow_the_size_are_stored_alike(bind: Any) -> None:
    arrays: dict[str, np.ndarray] = {}
    for number, height in enumerate((4, 6)):
        arrays[f"x_test_{number}"] = images(2, height, 4)
        arrays[f"y_test_{number}"] = np.full((2, height, 4), number)
    bound = bind(MASKS, **arrays)
    for number, rows in enumerate(bound.one_sized("test", 0, 4)):
        assert bound.inputs("test", rows)["image"].shape[1] == (4, 6)[number]
        np.testing.assert_array_equal(bound.targets("test", rows)["mask"], arrays[f"y_test_{number}"])


def test_an_array_with_a_number_and_one_without_do_not_go_together(bind: Any) -> None:
    assert "leave one out" in refusal(bind, x_test=images(2, 4, 4), x_test_0=images(2, 5, 4)).message


def test_one_array_under_two_names_is_refused(bind: Any) -> None:
    assert "leave one out" in refusal(bind, x_test_1=images(2, 4, 4), image_test_1=images(2, 5, 4)).message


def test_labels_have_to_be_as_many_as_all_samples(bind: Any) -> None:
    error = refusal(bind, x_test_0=images(2, 4, 4), x_test_1=images(3, 5, 4), y_test=np.zeros(4, int))
    assert "x_test has 5 samples, y_test 4" in error.message


def test_labels_that_are_numbered_alike_have_to_be_as_many_each(bind: Any) -> None:
    error = refusal(
        bind, x_test_0=images(2, 4, 4), x_test_1=images(3, 5, 4), y_test_0=np.zeros(3, int), y_test_1=np.zeros(2, int)
    )  # fmt: skip
    assert "x_test_0 has 2 samples, y_test_0 3" in error.message


def test_a_size_that_the_model_does_not_take_is_named(bind: Any) -> None:
    fixed = contract_pb2.Contract(
        inputs=[contract_pb2.TensorContract(name="image", shape=[-1, 4, 4, 1], dtype="float32")],
        outputs=IMAGES.outputs,
    )
    assert "x_test_1" in refusal(bind, fixed, x_test_0=images(2, 4, 4), x_test_1=images(2, 5, 4)).message
