"""Calibration samples and batches come from bound data, by name and by seed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tests import models

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath, StepInputs
from squeezeflow.modelkit import data, keras_source
from squeezeflow.v1 import artifact_pb2

MODEL = artifact_pb2.ARTIFACT_KIND_KERAS


def inputs_of(folder: Path, arrays: dict[str, np.ndarray] | None, **options: tuple[float, ...]) -> StepInputs:
    artifacts = {"model": ArtifactPath(MODEL, folder / "none.keras")}
    if arrays is not None:
        np.savez(folder / "data.npz", **arrays)
        artifacts["data"] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, folder / "data.npz")
    return StepInputs(artifacts, folder, **options)


@pytest.fixture(scope="module")
def two() -> keras_source.KerasSource:
    import tf_keras

    zeta, alpha = tf_keras.Input((3,), name="zeta"), tf_keras.Input((3,), name="alpha")
    merged = tf_keras.layers.Subtract(name="difference")([zeta, alpha])
    return keras_source.of_model(tf_keras.Model([zeta, alpha], merged))


def test_without_data_nothing_is_bound(two: keras_source.KerasSource, tmp_path: Path) -> None:
    assert data.bind(inputs_of(tmp_path, None), two.contract) is None


def test_calibration_samples_are_named_as_the_signature_names_its_inputs(
    two: keras_source.KerasSource, tmp_path: Path
) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    bound = data.bind(inputs_of(tmp_path, {"zeta_train": rows, "alpha_train": -rows}), two.contract)
    assert bound is not None
    two_names = {"zeta": "input_0", "alpha": "input_1"}
    original, two.signature_inputs = two.signature_inputs, two_names
    samples = list(data.representative(bound, two, count=3, seed=0)())
    two.signature_inputs = original
    assert len(samples) == 3
    for sample in samples:
        assert sample["input_0"].shape == (1, 3)
        np.testing.assert_array_equal(sample["input_0"], -sample["input_1"])


def test_a_model_with_a_fixed_batch_is_calibrated_with_whole_batches(tmp_path: Path) -> None:
    import tf_keras

    inputs = tf_keras.Input((3,), batch_size=4, name="x")
    source = keras_source.of_model(tf_keras.Model(inputs, tf_keras.layers.Dense(2)(inputs)))
    bound = data.bind(inputs_of(tmp_path, {"x_train": np.zeros((6, 3), np.float32)}), source.contract)
    assert bound is not None
    assert [sample["x"].shape for sample in data.representative(bound, source, count=2, seed=0)()] == [(4, 3), (4, 3)]


def test_calibration_without_samples_is_refused(two: keras_source.KerasSource, tmp_path: Path) -> None:
    rows = np.zeros((4, 3), np.float32)
    bound = data.bind(inputs_of(tmp_path, {"zeta_test": rows, "alpha_test": rows}), two.contract)
    assert bound is not None
    with pytest.raises(SqueezeflowError) as caught:
        data.representative(bound, two, count=2, seed=0)
    assert caught.value.reason == "DATA_MISSING"


def test_the_affine_of_the_step_reaches_the_data(tmp_path: Path) -> None:
    source = keras_source.of_model(models.tf_keras_cnn())
    images = np.full((2, 28, 28), 255, np.uint8)
    bound = data.bind(inputs_of(tmp_path, {"x_test": images}, scale=(1 / 255,)), source.contract)
    assert bound is not None
    assert bound.inputs("test", slice(0, 1))["image"].max() == pytest.approx(1.0)


def test_batches_are_shuffled_by_seed_differently_every_epoch(tmp_path: Path) -> None:
    source = keras_source.of_model(models.tf_keras_cnn())
    arrays = {"x_train": np.zeros((10, 28, 28, 1), np.float32), "y_train": np.arange(10)}
    bound = data.bind(inputs_of(tmp_path, arrays), source.contract)
    assert bound is not None

    def epochs(seed: int | None) -> list[list[int]]:
        rows = np.arange(10)
        batches = data.tf_dataset(bound, source.contract, split="train", rows=rows, batch_size=4, shuffle_seed=seed)
        labels = [int(y) for _, ys in islice(batches.as_numpy_iterator(), 6) for y in ys]
        return [labels[start : start + 10] for start in range(0, len(labels), 10)]

    assert epochs(None) == [list(range(10))]
    first, second = epochs(1)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert epochs(1) == [first, second]
