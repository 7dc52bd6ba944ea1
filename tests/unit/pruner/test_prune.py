"""Pruning of real models: zeros in the saved file, layers that are left alone, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants import needed_zeros
from squeezeflow.core.step import ArtifactPath, StepInputs, StepOutputs
from squeezeflow.modelkit.source import open_source
from squeezeflow.pruner import prune
from squeezeflow.v1 import artifact_pb2, technique_pb2

KINDS = {
    ".keras": artifact_pb2.ARTIFACT_KIND_KERAS,
    ".h5": artifact_pb2.ARTIFACT_KIND_HDF5,
    "": artifact_pb2.ARTIFACT_KIND_SAVED_MODEL,
    ".tflite": artifact_pb2.ARTIFACT_KIND_TFLITE,
}
Run = Callable[..., StepOutputs]


def prune_file(
    folder: Path, model: Path, arrays: dict[str, np.ndarray] | None, *, told: list[Any] | None = None, **params: Any
) -> StepOutputs:
    """Prunes a model file on given arrays, one epoch unless told otherwise."""
    artifacts = {"model": ArtifactPath(KINDS[model.suffix], model)}
    if arrays is not None:
        np.savez(folder / "data.npz", **arrays)
        artifacts["data"] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, folder / "data.npz")
    workdir = folder / f"work-{len(list(folder.glob('work-*')))}"
    workdir.mkdir()
    fine_tune = technique_pb2.FineTune(**{"epochs": 1, **params.pop("fine_tune", {})})

    def report(fraction: float, stage: str, **details: Any) -> None:
        if told is not None:
            told.append((fraction, stage, details))

    request = technique_pb2.Prune(fine_tune=fine_tune, **params)
    return prune.run(request, StepInputs(artifacts=artifacts, workdir=workdir), report)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(prune_file, tmp_path)


@dataclass(frozen=True)
class Pruned:
    """A CNN that was pruned once for several tests."""

    source: Path
    outputs: StepOutputs
    told: list[Any]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    folder, told = tmp_path_factory.mktemp("cnn"), []
    source = models.tf_keras_file(folder, compiled=True)
    return Pruned(source, prune_file(folder, source, images(), told=told, sparsity=0.8), told)


def images(count: int = 96) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.random((count, 28, 28, 1), np.float32),
        "y_train": rng.integers(0, 10, count),
        "classes": np.array([f"label {index}" for index in range(10)]),
    }


def vectors(count: int = 96) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 8)).astype(np.float32)
    return {"x_train": x, "y_train": (x[:, 0] > 0).astype(np.int64)}


def save(folder: Path, *layers: Any, **inputs: Any) -> Path:
    """Writes a tf_keras stack of layers on 8 numbers."""
    import tf_keras

    tf_keras.utils.set_random_seed(1)
    first = tf_keras.Input(**{"shape": (8,), "name": "x", **inputs})
    return models.save(tf_keras.Sequential([first, *layers]), folder / "model.keras")


def classifier() -> Any:
    import tf_keras

    return tf_keras.layers.Dense(2, activation="softmax", name="label")


def load(outputs: StepOutputs) -> Any:
    import tf_keras

    assert outputs.artifact is not None
    return tf_keras.models.load_model(str(outputs.artifact.path))


def test_the_saved_file_has_the_promised_zeros_and_is_the_same_model_without_wrappers(cnn: Pruned) -> None:
    import tf_keras

    outputs = cnn.outputs
    original, pruned = tf_keras.models.load_model(str(cnn.source)), load(outputs)
    assert [layer.name for layer in pruned.layers] == [layer.name for layer in original.layers]
    assert [type(layer) for layer in pruned.layers] == [type(layer) for layer in original.layers]
    for layer in ("conv", "conv_2", "dense", "probabilities"):
        kernel = pruned.get_layer(layer).kernel.numpy()
        assert np.count_nonzero(kernel == 0) == needed_zeros(kernel.size, 0.8)
        assert not np.signbit(kernel[kernel == 0]).any(), "a negative zero costs a bit that deflate cannot remove"
    assert np.count_nonzero(pruned.get_layer("depthwise").depthwise_kernel.numpy() == 0) == 0
    assert [(i.name, i.passed) for i in outputs.invariants] == [
        ("finite", True),
        ("alive", True),
        ("close", True),
        ("sparsity", True),
    ]
    by_layer = {outcome.layer: outcome for outcome in outputs.layers}
    assert list(by_layer) == [layer.name for layer in original.layers]
    assert by_layer["dense"].detail == "sparsity 0.800"
    assert by_layer["dense"].applied
    assert not by_layer["depthwise"].applied
    assert "depthwise" in by_layer["depthwise"].detail
    assert any("deflated, the model shrinks from" in note for note in outputs.notes)


def test_progress_goes_from_loading_over_training_to_proving(cnn: Pruned) -> None:
    fractions = [fraction for fraction, _, _ in cnn.told]
    assert fractions == sorted(fractions)
    assert list(dict.fromkeys(stage for _, stage, _ in cnn.told)) == ["loading", "training", "proving"]


def test_a_later_step_finds_loss_labels_and_samples(cnn: Pruned) -> None:
    outputs = cnn.outputs
    assert outputs.artifact is not None
    assert outputs.contract is not None
    again = open_source(outputs.artifact)
    assert again.compile_config.loss == "sparse_categorical_crossentropy"
    assert again.compile_config.learning_rate == pytest.approx(0.002)
    assert [tensor.name for tensor in outputs.contract.inputs] == ["image"]
    assert outputs.contract.labels[3] == "label 3"
    golden = outputs.contract.golden_samples[0]
    assert list(golden.outputs["probabilities"].shape) == [1, 10]


@pytest.mark.parametrize("batch_size", [96, 48], ids=["one step", "two steps"])
def test_the_sparsity_is_reached_however_few_steps_there_are(tmp_path: Path, run: Run, batch_size: int) -> None:
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(20, activation="relu", name="dense"), classifier())
    pruned = load(run(source, vectors(), sparsity=0.5, fine_tune={"batch_size": batch_size}))
    kernel = pruned.get_layer("dense").kernel.numpy()
    assert np.count_nonzero(kernel == 0) == needed_zeros(160, 0.5)


def test_sparsities_that_float32_cannot_hold_are_reached_too(tmp_path: Path, run: Run) -> None:
    import tf_keras

    # 25 · (1 − 0.9) rounds to 3 in float32 and to 2 exactly: TFMOT alone would leave one weight too many.
    square = tf_keras.layers.Dense(5, name="square")
    source = save(tmp_path, tf_keras.layers.Dense(5), square, classifier())
    pruned = load(run(source, vectors(), sparsity=0.9))
    assert np.count_nonzero(pruned.get_layer("square").kernel.numpy() == 0) == needed_zeros(25, 0.9) == 23


def test_inner_layers_of_nested_models_are_pruned_and_frozen_ones_keep_every_weight(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    backbone = tf_keras.Sequential([tf_keras.Input((8,)), layers.Dense(16, name="inner")], name="backbone")
    frozen = layers.Dense(12, name="frozen", trainable=False)
    norm = layers.BatchNormalization(name="norm", trainable=False)
    source = save(tmp_path, backbone, frozen, norm, classifier())
    before = tf_keras.models.load_model(str(source))
    outputs = run(source, vectors(), sparsity=0.75)
    after = load(outputs)
    inner = after.get_layer("backbone").get_layer("inner").kernel.numpy()
    assert np.count_nonzero(inner == 0) == needed_zeros(128, 0.75)
    for name in ("frozen", "norm"):
        assert not after.get_layer(name).trainable
        for old, new in zip(before.get_layer(name).get_weights(), after.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    by_layer = {outcome.layer: outcome for outcome in outputs.layers}
    assert by_layer["backbone/inner"].detail == "sparsity 0.750"
    assert by_layer["frozen"].detail.startswith("frozen (trainable is false)")


def test_layers_that_tfmot_does_not_know_are_left_alone_by_name(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    source = save(
        tmp_path,
        layers.Rescaling(2.0, name="rescale"),
        layers.Reshape((4, 2)),
        layers.TimeDistributed(layers.Dense(4), name="steps"),
        layers.LSTM(6, name="lstm"),
        layers.Dense(1, name="narrow"),
        classifier(),
    )
    outputs = run(source, vectors(), sparsity=0.8)
    by_layer = {outcome.layer: outcome for outcome in outputs.layers}
    assert not by_layer["rescale"].applied
    assert "TimeDistributed" in by_layer["steps"].detail
    assert by_layer["label"].detail == "too few weights (2) to leave any at sparsity 0.8"
    cell = load(outputs).get_layer("lstm").cell
    for kernel in (cell.kernel.numpy(), cell.recurrent_kernel.numpy()):
        assert np.count_nonzero(kernel == 0) == needed_zeros(kernel.size, 0.8)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, run: Run) -> None:
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(8), tf_keras.layers.Dropout(0.5), classifier())
    files = [run(source, vectors(), fine_tune={"seed": seed}).artifact.path.read_bytes() for seed in (1, 1, 2)]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_training_recovers_what_pruning_takes(tmp_path: Path, run: Run) -> None:
    import tf_keras

    data = vectors(600)
    source = save(tmp_path, tf_keras.layers.Dense(32, activation="relu"), classifier())
    pruned = load(run(source, data, fine_tune={"epochs": 10, "learning_rate": 0.01}))
    predicted = pruned.predict(data["x_train"], verbose=0).argmax(axis=-1)
    assert np.mean(predicted == data["y_train"]) > 0.9


def test_an_initial_sparsity_above_the_target_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(SqueezeflowError, match="lower initial_sparsity") as refusal:
        run(models.tf_keras_file(tmp_path), images(), sparsity=0.5, initial_sparsity=0.6)
    assert refusal.value.reason == "INVALID_PARAMETER"
    assert refusal.value.fields[0][0] == "params.initial_sparsity"


@pytest.mark.parametrize(
    ("make", "says"), [(models.keras3_file, "save it with tf_keras"), (models.saved_model, "without layers")]
)
def test_models_that_tf_keras_cannot_train_are_refused(
    tmp_path: Path, run: Run, make: Callable[[Path], Path], says: str
) -> None:
    with pytest.raises(SqueezeflowError, match=says) as refusal:
        run(make(tmp_path), images())
    assert refusal.value.reason == "UNSUPPORTED_INPUT"


def test_a_model_without_a_layer_to_prune_is_refused_with_the_reasons(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    source = save(tmp_path, layers.BatchNormalization(name="norm"), layers.Dense(2, name="still", trainable=False))
    with pytest.raises(SqueezeflowError, match=r"norm: .*; still: frozen") as refusal:
        run(source, vectors())
    assert refusal.value.reason == "UNSUPPORTED_LAYER"
    assert set(refusal.value.metadata) == {"norm", "still"}


def test_without_train_samples_it_is_data_missing(tmp_path: Path, run: Run) -> None:
    with pytest.raises(SqueezeflowError, match="x_train and y_train") as refusal:
        run(models.tf_keras_file(tmp_path), None)
    assert refusal.value.reason == "DATA_MISSING"
