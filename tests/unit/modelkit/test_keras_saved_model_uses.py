"""What can be done with a SavedModel that tf_keras saved: everything that can be done with a Keras file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests import models

from squeezeflow.converter import describe, export
from squeezeflow.core.invariants import needed_zeros
from squeezeflow.core.step import ArtifactPath, StepInputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit.source import open_source
from squeezeflow.pruner import cluster, prune
from squeezeflow.quantizer import train_quantized
from squeezeflow.v1 import artifact_pb2, technique_pb2

SAVED_MODEL = artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = models.tf_keras_cnn()
    models.compile_adam(model, "sparse_categorical_crossentropy", learning_rate=0.002)
    return models.keras_saved_model(model, tmp_path_factory.mktemp("models") / "cnn")


def test_it_is_described_layer_by_layer_as_a_keras_file_is(cnn: Path) -> None:
    found = describe.description_of(ArtifactPath(SAVED_MODEL, cnn))
    assert found.format == "Keras SavedModel"
    assert found.parameters == 14514
    assert list(found.signatures) == ["serving_default"]
    assert found.contract.outputs[0].meaning == "probabilities"
    layers = {layer.name: layer for layer in found.layers}
    assert (layers["conv_2"].class_name, layers["conv_2"].parameters) == ("Conv2D", 1168)
    assert {technique.technique for technique in layers["dense"].techniques if technique.supported} == {
        *("convert", "quantize", "train_quantized", "prune", "cluster")
    }
    assert all(technique.supported for technique in found.techniques)


def step(model: Path, workdir: Path) -> StepInputs:
    """Gives a step on images with labels."""
    workdir.mkdir()
    np.savez(
        workdir / "data.npz",
        x_train=RANDOM.random((64, 28, 28, 1), np.float32),
        y_train=RANDOM.integers(0, 10, 64),
    )
    data = ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, workdir / "data.npz")
    return StepInputs({"model": ArtifactPath(SAVED_MODEL, model), "data": data}, workdir)


def test_it_is_pruned_with_fine_tuning_and_becomes_a_keras_file(cnn: Path, tmp_path: Path) -> None:
    import tf_keras

    params = technique_pb2.Prune(sparsity=0.5, fine_tune={"epochs": 1}, layers={"exclude": ["conv"]})
    made = prune.run(params, step(cnn, tmp_path / "prune"), lambda *_, **__: None)
    assert made.artifact is not None
    assert made.artifact.kind == artifact_pb2.ARTIFACT_KIND_KERAS
    model = tf_keras.models.load_model(str(made.artifact.path), compile=False)
    kernel = model.get_layer("dense").kernel.numpy()
    assert np.count_nonzero(kernel == 0) == needed_zeros(kernel.size, 0.5)
    assert {layer.layer: layer.applied for layer in made.layers}["conv"] is False
    assert any("read as the Keras model that was saved" in note for note in made.notes)


def test_it_is_trained_with_fake_quantization(cnn: Path, tmp_path: Path) -> None:
    params = technique_pb2.TrainQuantized(fine_tune={"epochs": 1}, min_sqnr_db=1.0)
    made = train_quantized.run(params, step(cnn, tmp_path / "qat"), lambda *_, **__: None)
    assert made.artifact is not None
    assert {layer.layer for layer in made.layers if layer.applied} >= {"conv", "conv_2", "dense", "probabilities"}
    assert any(weight.tensor.dtype == "int8" for weight in TfliteFile.read(made.artifact.path).weights)
    assert made.contract.inputs[0].name == "image"


@pytest.mark.parametrize("technique", ["prune", "cluster"])
def test_at_once_it_stays_a_saved_model_and_a_keras_one(cnn: Path, tmp_path: Path, technique: str) -> None:
    inputs = StepInputs({"model": ArtifactPath(SAVED_MODEL, cnn)}, tmp_path)
    if technique == "prune":
        made = prune.run(technique_pb2.Prune(sparsity=0.5, one_shot=True), inputs, lambda *_, **__: None)
    else:
        clusters = technique_pb2.Cluster(number_of_clusters=4, one_shot=True)
        made = cluster.run(clusters, inputs, lambda *_, **__: None)
    assert made.artifact is not None
    assert made.artifact.kind == SAVED_MODEL
    source = open_source(made.artifact)
    assert source.keras is not None, source.why_graph
    kernel = source.keras.get_layer("dense").kernel.numpy()
    if technique == "prune":
        assert np.count_nonzero(kernel == 0) == needed_zeros(kernel.size, 0.5)
    else:
        assert len(np.unique(kernel)) <= 4


def test_it_is_exported_as_a_keras_file(cnn: Path, tmp_path: Path) -> None:
    import tf_keras

    inputs = StepInputs({"model": ArtifactPath(SAVED_MODEL, cnn)}, tmp_path)
    made = export.run(technique_pb2.Export(format=technique_pb2.Export.FORMAT_KERAS), inputs, lambda *_, **__: None)
    assert made.artifact is not None
    model = tf_keras.models.load_model(str(made.artifact.path))
    x = RANDOM.random((4, 28, 28, 1), np.float32)
    expected = open_source(ArtifactPath(SAVED_MODEL, cnn)).predict({"image": x})
    np.testing.assert_allclose(model.predict(x, verbose=0), expected["probabilities"], rtol=1e-5)
    assert model.loss.name == "sparse_categorical_crossentropy"
