"""Clustering of real models: distinct values and zeros in the saved file, layers left alone, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core import invariants
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants import needed_zeros
from squeezeflow.core.step import ArtifactPath, Checkpoint, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import conversion
from squeezeflow.modelkit.clustered import clusters_kept
from squeezeflow.modelkit.source import open_source
from squeezeflow.pruner import cluster
from squeezeflow.v1 import artifact_pb2, technique_pb2

KINDS = {".keras": artifact_pb2.ARTIFACT_KIND_KERAS, "": artifact_pb2.ARTIFACT_KIND_SAVED_MODEL}
Run = Callable[..., StepOutputs]
Cluster = technique_pb2.Cluster


def cluster_file(
    folder: Path,
    model: Path,
    arrays: dict[str, np.ndarray] | None,
    *,
    checkpoint: Checkpoint | None = None,
    report: Any = lambda *args, **details: None,
    **params: Any,
) -> StepOutputs:
    """Clusters a model file on given arrays, one epoch unless told otherwise."""
    artifacts = {"model": ArtifactPath(KINDS[model.suffix], model)}
    if arrays is not None:
        np.savez(folder / "data.npz", **arrays)
        artifacts["data"] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, folder / "data.npz")
    workdir = folder / f"work-{len(list(folder.glob('work-*')))}"
    workdir.mkdir()
    fine_tune = technique_pb2.FineTune(**{"epochs": 1, **params.pop("fine_tune", {})})
    inputs = StepInputs(artifacts=artifacts, workdir=workdir, checkpoint=checkpoint)
    return cluster.run(Cluster(fine_tune=fine_tune, **params), inputs, report)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(cluster_file, tmp_path)


@dataclass(frozen=True)
class Clustered:
    """A CNN that was clustered once for several tests."""

    source: Path
    outputs: StepOutputs


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Clustered:
    folder = tmp_path_factory.mktemp("cnn")
    source = models.tf_keras_file(folder, compiled=True)
    return Clustered(source, cluster_file(folder, source, images(), number_of_clusters=8))


@pytest.fixture(scope="module")
def pruned_cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a CNN with 80 % zeros in three kernels, one channel of `conv_2` all zero, and none in the last one."""
    model = models.tf_keras_cnn()
    for name in ("conv", "conv_2", "dense"):
        kernel, *rest = model.get_layer(name).get_weights()
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.8)] = 0
        if name == "conv_2":
            kernel[..., 0] = 0
        model.get_layer(name).set_weights([kernel, *rest])
    return models.save(model, tmp_path_factory.mktemp("pruned") / "model.keras")


def images(count: int = 96) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x_train": rng.random((count, 28, 28, 1), np.float32), "y_train": rng.integers(0, 10, count)}


def vectors(count: int = 96) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 8)).astype(np.float32)
    return {"x_train": x, "y_train": (x[:, 0] > 0).astype(np.int64)}


def save(folder: Path, *layers: Any, **inputs: Any) -> Path:
    """Writes a tf_keras stack of layers on 8 numbers that tells two classes apart."""
    import tf_keras

    tf_keras.utils.set_random_seed(1)
    first = tf_keras.Input(**{"shape": (8,), "name": "x", **inputs})
    label = tf_keras.layers.Dense(2, activation="softmax", name="label")
    return models.save(tf_keras.Sequential([first, *layers, label]), folder / "model.keras")


def load(outputs: StepOutputs) -> Any:
    import tf_keras

    assert outputs.artifact is not None
    return tf_keras.models.load_model(str(outputs.artifact.path))


def layers_of(outputs: StepOutputs) -> dict[str, tuple[bool, str]]:
    return {outcome.layer: (outcome.applied, outcome.detail) for outcome in outputs.layers}


def test_every_kernel_of_the_saved_file_holds_the_promised_number_of_values(cnn: Clustered) -> None:
    import tf_keras

    original, clustered = tf_keras.models.load_model(str(cnn.source)), load(cnn.outputs)
    assert [(type(layer), layer.name) for layer in clustered.layers] == [
        (type(layer), layer.name) for layer in original.layers
    ]
    for name in ("conv", "conv_2", "dense", "probabilities"):
        values = np.unique(clustered.get_layer(name).kernel.numpy())
        assert 4 < values.size <= 8
        assert not np.isin(values, original.get_layer(name).kernel.numpy()).all(), "the centroids were trained"
    assert np.unique(clustered.get_layer("depthwise").depthwise_kernel.numpy()).size == 72
    assert [(i.name, i.passed) for i in cnn.outputs.invariants] == [
        ("finite", True),
        ("alive", True),
        ("close", True),
        ("clusters", True),
    ]


def test_every_layer_is_listed_with_what_it_reached_or_why_it_was_left(cnn: Clustered) -> None:
    found = layers_of(cnn.outputs)
    assert found["dense"] == (True, "8 of 8 values")
    assert found["norm"] == (False, "has no kernel that TFMOT clusters (BatchNormalization)")
    assert found["depthwise"][1].startswith("depthwise kernels are not clustered")
    assert list(found) == [layer.name for layer in load(cnn.outputs).layers]
    sizes = next(note for note in cnn.outputs.notes if note.startswith("deflated, the model shrinks from"))
    assert sizes.endswith("latency do not change")


def test_a_later_step_finds_the_loss_and_golden_samples(cnn: Clustered) -> None:
    assert cnn.outputs.artifact is not None
    assert cnn.outputs.contract is not None
    assert open_source(cnn.outputs.artifact).compile_config.learning_rate == pytest.approx(0.002)
    assert len(cnn.outputs.contract.golden_samples) == 4


def test_an_int8_file_of_a_clustered_model_keeps_its_clusters_by_channel(cnn: Clustered, tmp_path: Path) -> None:
    import tensorflow as tf

    assert cnn.outputs.artifact is not None
    source = open_source(cnn.outputs.artifact)
    converter = source.converter()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    conversion.convert(converter, tmp_path / "model.tflite")
    (kept,) = clusters_kept(source, TfliteFile.read(tmp_path / "model.tflite"))
    assert kept.passed, kept.detail
    assert "dense 8 values a channel" in kept.detail
    plain = open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, cnn.source))
    assert clusters_kept(plain, TfliteFile.read(tmp_path / "model.tflite")) == ()


def test_training_gives_what_tfmots_own_wrapper_gives(tmp_path: Path, run: Run) -> None:
    """The wrapper is ours for what TFMOT's does not do; where both can, they must agree."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(24, activation="relu", name="dense"))
    data = vectors(64)
    ours = load(run(source, data, number_of_clusters=5, fine_tune={"batch_size": 64, "optimizer": "sgd"}))
    theirs = tfmot.clustering.keras.cluster_weights(tf_keras.models.load_model(str(source)), 5)
    theirs.compile(tf_keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
    theirs.fit(data["x_train"], data["y_train"], batch_size=64, epochs=1, verbose=0, shuffle=False)
    stripped = tfmot.clustering.keras.strip_clustering(theirs)
    for name in ("dense", "label"):
        for expected, values in zip(
            stripped.get_layer(name).get_weights(), ours.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_zeros_of_a_pruned_model_stay_and_are_one_of_the_values(pruned_cnn: Path, run: Run, per_channel: bool) -> None:
    outputs = run(pruned_cnn, images(), number_of_clusters=6, per_channel=per_channel)
    clustered = load(outputs)
    for name in ("conv", "conv_2", "dense"):
        kernel = clustered.get_layer(name).kernel.numpy()
        assert np.count_nonzero(kernel == 0) >= needed_zeros(kernel.size, 0.79)
        assert not np.signbit(kernel[kernel == 0]).any(), "a negative zero costs a bit that deflate cannot remove"
        assert invariants.distinct(kernel, -1 if per_channel and name != "dense" else None) <= 6
    assert np.count_nonzero(clustered.get_layer("probabilities").kernel.numpy() == 0) == 0
    assert [i.name for i in outputs.invariants] == ["finite", "alive", "close", "clusters", "sparsity"]
    assert "sparsity 0.8" in layers_of(outputs)["dense"][1]
    assert "sparsity" not in layers_of(outputs)["probabilities"][1]
    if per_channel:
        assert np.unique(clustered.get_layer("conv_2").kernel.numpy()).size > 6
        assert "centroids by channel are for Conv2D" in layers_of(outputs)["dense"][1]


def test_zeros_are_values_like_others_where_they_are_not_to_be_kept(pruned_cnn: Path, run: Run) -> None:
    outputs = run(pruned_cnn, images(), number_of_clusters=8, preserve_sparsity=False)
    assert [i.name for i in outputs.invariants] == ["finite", "alive", "close", "clusters"]
    assert np.count_nonzero(load(outputs).get_layer("dense").kernel.numpy() == 0) < 100


@pytest.mark.parametrize("method", ["LINEAR", "RANDOM", "DENSITY_BASED"])
def test_every_way_to_choose_the_first_centroids_gives_its_own_clusters(tmp_path: Path, run: Run, method: str) -> None:
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(32, name="dense"))
    initialization = Cluster.Initialization.Value(f"INITIALIZATION_{method}")
    kernels = [
        load(run(source, vectors(32), number_of_clusters=6, initialization=chosen)).get_layer("dense").kernel.numpy()
        for chosen in (initialization, Cluster.INITIALIZATION_KMEANS_PLUS_PLUS)
    ]
    assert all(2 < np.unique(kernel).size <= 6 for kernel in kernels)
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01
    if method == "LINEAR":
        steps = np.diff(np.unique(kernels[0]))
        np.testing.assert_allclose(steps, steps[0], atol=0.02)


def test_layers_are_chosen_by_name_and_have_clusters_of_their_own(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    backbone = tf_keras.Sequential([tf_keras.Input((8,)), layers.Dense(16, name="inner")], name="backbone")
    frozen = layers.Dense(12, name="frozen", trainable=False)
    source = save(tmp_path, backbone, layers.Dense(12, name="other"), frozen)
    before = tf_keras.models.load_model(str(source))
    outputs = run(
        source,
        vectors(),
        number_of_clusters=4,
        layers={"exclude": ["oth*"]},
        layer_clusters=[{"pattern": "*", "number_of_clusters": 3}, {"pattern": "label", "number_of_clusters": 24}],
    )
    after, found = load(outputs), layers_of(outputs)
    assert found["backbone/inner"] == (True, "3 of 3 values")
    assert found["other"] == (False, "left out by the request: layers.exclude names oth*")
    assert found["frozen"][1].startswith("frozen (trainable is false)")
    assert found["label"] == (False, "too few weights (24) to share 24 values")
    assert not after.get_layer("frozen").trainable
    np.testing.assert_array_equal(before.get_layer("frozen").kernel, after.get_layer("frozen").kernel)
    assert np.unique(after.get_layer("other").kernel.numpy()).size == 16 * 12


def test_recurrent_attention_and_embedding_kernels_are_clustered_and_masks_passed_on(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(1)
    ids = tf_keras.Input((6,), dtype="int32", name="ids")
    x = layers.Embedding(30, 8, mask_zero=True, name="embedding")(ids)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, value=x) * 2.0
    x = layers.LSTM(6, name="lstm", dropout=0.3, unroll=True)(x)
    model = tf_keras.Model(ids, layers.Dense(2, activation="softmax", name="label")(x))
    rng = np.random.default_rng(0)
    data = {"x_train": rng.integers(0, 30, (32, 6)).astype(np.int32), "y_train": rng.integers(0, 2, 32)}
    # A mask that is lost would show as a difference between the saved file and the model that was fine-tuned.
    outputs = run(models.save(model, tmp_path / "model.keras"), data, number_of_clusters=5)
    after = load(outputs)
    cell, attention = after.get_layer("lstm").cell, after.get_layer("attention")
    for kernel in (cell.kernel, cell.recurrent_kernel, attention._key_dense.kernel, attention._output_dense.kernel):
        assert np.unique(kernel.numpy()).size <= 5
    assert layers_of(outputs)["lstm"] == (True, "5 of 5 values; 5 of 5 values")
    assert layers_of(outputs)["attention"][0]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, run: Run) -> None:
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(8), tf_keras.layers.Dropout(0.5))
    random = {"initialization": Cluster.INITIALIZATION_RANDOM, "number_of_clusters": 4}
    files = [run(source, vectors(32), fine_tune={"seed": s}, **random).artifact.path.read_bytes() for s in (1, 1, 2)]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_a_fit_that_was_interrupted_goes_on_to_the_same_bytes(tmp_path: Path, run: Run) -> None:
    import tf_keras

    dense = tf_keras.layers.Dense(32, activation="relu", name="dense")
    source = save(tmp_path, dense)
    model = tf_keras.models.load_model(str(source))
    kernel = model.get_layer("dense").kernel
    kernel.assign(np.where(np.abs(kernel) < np.quantile(np.abs(kernel), 0.6), 0, kernel))
    models.save(model, source)
    settings: dict[str, Any] = {"number_of_clusters": 6, "fine_tune": {"epochs": 2}}
    whole = run(source, vectors(), **settings)
    checkpoint = Checkpoint(tmp_path / "state", 0.0, lambda: None)

    def stop(fraction: float, stage: str, *, epoch: int = 0, **details: Any) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, vectors(), checkpoint=checkpoint, report=stop, **settings)
    resumed = run(source, vectors(), checkpoint=checkpoint, **settings)
    assert any(note.startswith("resumed from epoch 1") for note in resumed.notes)
    assert resumed.artifact.path.read_bytes() == whole.artifact.path.read_bytes()


def test_training_recovers_what_clustering_takes(tmp_path: Path, run: Run) -> None:
    import tf_keras

    data = vectors(600)
    source = save(tmp_path, tf_keras.layers.Dense(32, activation="relu"))
    clustered = load(run(source, data, number_of_clusters=4, fine_tune={"epochs": 10, "learning_rate": 0.01}))
    predicted = clustered.predict(data["x_train"], verbose=0).argmax(axis=-1)
    assert np.mean(predicted == data["y_train"]) > 0.9


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"layers": {"include": ["nothing*"]}}, "params.layers.include"),
        ({"layer_clusters": [{"pattern": "nothing", "number_of_clusters": 4}]}, "params.layer_clusters"),
    ],
)
def test_a_pattern_that_names_no_layer_is_refused(cnn: Clustered, run: Run, params: Any, field: str) -> None:
    with pytest.raises(SqueezeflowError, match="no layer is named nothing") as refusal:
        run(cnn.source, images(8), **params)
    assert refusal.value.reason == "INVALID_PARAMETER"
    assert refusal.value.fields[0][0] == field


def test_a_model_without_a_layer_to_cluster_is_refused_with_the_reasons(cnn: Clustered, run: Run) -> None:
    with pytest.raises(SqueezeflowError, match=r"conv: too few weights \(9 in an output channel\)") as refusal:
        run(cnn.source, images(8), per_channel=True, number_of_clusters=9, layers={"include": ["conv"]})
    assert refusal.value.reason == "UNSUPPORTED_LAYER"
    assert refusal.value.metadata["dense"].startswith("left out by the request")


def test_without_train_samples_it_is_data_missing_and_a_saved_model_has_no_layers(tmp_path: Path, run: Run) -> None:
    with pytest.raises(SqueezeflowError, match="x_train and y_train") as refusal:
        run(models.tf_keras_file(tmp_path), None)
    assert refusal.value.reason == "DATA_MISSING"
    with pytest.raises(SqueezeflowError, match="without layers") as refusal:
        run(models.saved_model(tmp_path), images(8))
    assert refusal.value.reason == "UNSUPPORTED_INPUT"


def test_at_once_no_data_are_needed_and_k_means_places_the_values(pruned_cnn: Path, run: Run) -> None:
    import tf_keras

    before = tf_keras.models.load_model(str(pruned_cnn))
    outputs = run(pruned_cnn, None, one_shot=True, number_of_clusters=8)
    after = load(outputs)
    for name in ("conv", "conv_2", "dense", "probabilities"):
        old, new = (model.get_layer(name).kernel.numpy() for model in (before, after))
        values = np.unique(new)
        assert values.size <= 8
        assert (new[old == 0] == 0).all()
        distances = np.abs(old[..., None] - values)
        np.testing.assert_allclose(np.abs(old - new), distances.min(axis=-1), atol=1e-7)
        for value in values[values != 0]:
            assert old[new == value].mean() == pytest.approx(value, abs=1e-5)
    np.testing.assert_array_equal(before.get_layer("conv_2").bias, after.get_layer("conv_2").bias)
    assert [i.name for i in outputs.invariants] == ["finite", "alive", "close", "clusters", "sparsity"]
    assert any(note.startswith("without training, the outputs moved by") for note in outputs.notes)


def test_at_once_a_saved_model_stays_one_and_its_kernels_are_clustered(tmp_path: Path, run: Run) -> None:
    import tensorflow as tf

    source = models.saved_model(tmp_path)
    outputs = run(source, None, one_shot=True, number_of_clusters=8, per_channel=True)
    assert outputs.artifact is not None
    assert outputs.artifact.kind == artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
    variables = {v.name.split(":")[0]: v.numpy() for v in tf.saved_model.load(str(outputs.artifact.path)).variables}
    assert np.unique(variables["dense/kernel"]).size <= 8
    assert invariants.distinct(variables["conv_2/kernel"], -1) <= 8 < np.unique(variables["conv_2/kernel"]).size
    assert np.unique(variables["depthwise/depthwise_kernel"]).size == 72
    found = layers_of(outputs)
    assert found["conv_2/kernel"] == (True, "8 of 8 values a channel")
    assert found["dense/kernel"][0]
    assert not found["depthwise/depthwise_kernel"][0]
    assert [(i.name, i.passed) for i in outputs.invariants] == [
        ("finite", True),
        ("alive", True),
        ("close", True),
        ("clusters", True),
    ]


@pytest.mark.parametrize("one_shot", [False, True])
def test_a_keras_3_model_is_clustered_as_its_twin(tmp_path: Path, run: Run, one_shot: bool) -> None:
    outputs = run(models.keras3_file(tmp_path), images(32), one_shot=one_shot, number_of_clusters=5)
    assert np.unique(load(outputs).get_layer("conv_2").kernel.numpy()).size == 5
    assert layers_of(outputs)["conv_2"] == (True, "5 of 5 values")
