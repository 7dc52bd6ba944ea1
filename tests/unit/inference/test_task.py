from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.inference.task import Task, task_of
from squeezeflow.v1 import contract_pb2


def contract(*outputs: tuple[str, list[int], str]) -> contract_pb2.Contract:
    inputs = [contract_pb2.TensorContract(name="x", dtype="float32", shape=[-1, 2])]
    tensors = [
        contract_pb2.TensorContract(name=name, dtype="float32", shape=shape, meaning=meaning)
        for name, shape, meaning in outputs
    ]
    return contract_pb2.Contract(inputs=inputs, outputs=tensors)


def bound(folder: Path, model: contract_pb2.Contract, **arrays: np.ndarray) -> BoundData:
    np.savez(folder / "data.npz", x_test=np.zeros((4, 2), "float32"), **arrays)
    return Dataset.open(folder / "data.npz").bind(model)


def test_class_ids_are_compared_with_the_largest_output(tmp_path: Path) -> None:
    model = contract(("y", [-1, 3], "probabilities"))
    task = task_of(model, bound(tmp_path, model, y_test=np.array([0, 1, 2, 2])), "test")
    outputs = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    labels, right = task.judge(outputs, np.array([0, 1, 2, 2]))
    assert labels.tolist() == [0, 1, 0, 2]
    assert right.tolist() == [True, True, False, True]


def test_one_hot_labels_are_compared_by_their_class(tmp_path: Path) -> None:
    model = contract(("y", [-1, 3], ""))
    data = bound(tmp_path, model, y_test=np.eye(3, dtype="float32")[[0, 1, 2, 2]])
    task = task_of(model, data, "test")
    _, right = task.judge(np.eye(3)[[0, 1, 1, 2]], data.targets("test", slice(None))["y"])
    assert right.tolist() == [True, True, False, True]


@pytest.mark.parametrize(("meaning", "expected"), [("probabilities", [0, 0, 1]), ("logits", [0, 1, 1])])
def test_one_unit_decides_by_the_threshold_of_its_meaning(meaning: str, expected: list[int], tmp_path: Path) -> None:
    model = contract(("y", [-1, 1], meaning))
    task = task_of(model, bound(tmp_path, model, y_test=np.array([0, 1, 1, 0])), "test")
    outputs = np.array([[-0.1], [0.4], [0.6]])
    labels, _ = task.settle(outputs).judge(outputs, np.array([0, 0, 1]))
    assert labels.tolist() == expected


@pytest.mark.parametrize(("outputs", "threshold"), [([0.1, 0.9], 0.5), ([-0.1, 0.9], 0.0), ([0.1, 1.1], 0.0)])
def test_one_unit_without_a_meaning_is_told_by_its_values_and_reported(outputs: list[float], threshold: float) -> None:
    task = Task("y", "class_ids", one_unit=True).settle(np.array(outputs)[:, None])
    assert task.threshold == threshold
    assert f"above {threshold}" in task.notes[0]


def test_the_candidate_follows_what_the_baselines_values_told_and_not_what_its_contract_says() -> None:
    outputs = np.array([[0.2], [0.4]])
    guessed = Task("y", "class_ids", one_unit=True).settle(np.array([[-4.0], [3.0]]))
    assert Task("y", "class_ids", one_unit=True).follow(guessed).settle(outputs).threshold == 0.0
    stated = Task("y", "class_ids", one_unit=True, threshold=0.0)
    assert Task("y", "class_ids", one_unit=True).follow(stated).settle(outputs).threshold == 0.5


def test_models_that_answer_different_questions_are_not_compared() -> None:
    with pytest.raises(SqueezeflowError, match="DATA_MISMATCH"):
        Task("y", "class_ids").follow(Task("y", "values"))


def test_values_are_judged_by_each_samples_mean_error(tmp_path: Path) -> None:
    model = contract(("y", [-1, 2], "values"))
    task = task_of(model, bound(tmp_path, model, y_test=np.full((4, 2), 0.25, "float32")), "test")
    assert not task.classes
    _, errors = task.judge(np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert errors.tolist() == [1.0, 1.0]


def test_every_position_of_a_sequence_counts(tmp_path: Path) -> None:
    model = contract(("y", [-1, 5, 3], ""))
    data = bound(tmp_path, model, y_test=np.zeros((4, 5), "int64"))
    _, right = task_of(model, data, "test").judge(np.zeros((4, 5, 3)), data.targets("test", slice(None))["y"])
    assert right.shape == (20,)


def test_the_first_output_with_labels_is_the_figure_and_the_others_are_named(tmp_path: Path) -> None:
    model = contract(("a", [-1, 3], ""), ("b", [-1, 3], ""), ("c", [-1, 3], ""))
    ids = np.array([0, 1, 2, 2])
    task = task_of(model, bound(tmp_path, model, **{"y.b_test": ids, "y.c_test": ids}), "test")
    assert task.output == "b"
    assert task.notes == ("the figures are those of output b; not measured: a, c",)


def test_no_labels_is_data_missing(tmp_path: Path) -> None:
    model = contract(("y", [-1, 3], ""))
    with pytest.raises(SqueezeflowError, match="DATA_MISSING: evaluating needs y_test"):
        task_of(model, bound(tmp_path, model), "test")
