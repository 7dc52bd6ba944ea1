"""Clusters of every kind of kernel are found again in what the converter makes of them."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
from tests import models
from tests.layer_models import shared_values

from squeezeflow.core import invariants
from squeezeflow.core.step import ArtifactPath
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import conversion, layers
from squeezeflow.modelkit.clusterable import CLUSTERED_KERNELS, cluster_reason
from squeezeflow.modelkit.clustered import cluster_targets, clusters_kept
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.v1 import artifact_pb2

CLUSTERS = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Gives a model of one sample a call whose kernels share six values each."""
    import tf_keras

    tf_keras.utils.set_random_seed(2)
    kinds = tf_keras.layers
    ids = tf_keras.Input((16,), batch_size=1, dtype="int32", name="ids")
    x = kinds.Embedding(40, 12, name="embedding")(ids)
    x = kinds.MultiHeadAttention(2, 5, name="attention")(x, x)
    x = kinds.LSTM(14, return_sequences=True, name="lstm")(kinds.Conv1D(10, 3, name="conv1d")(x))
    x = kinds.SeparableConv2D(9, 3, name="separable")(kinds.Reshape((14, 7, 2))(x))
    x = kinds.Conv3D(7, 3, name="conv3d")(kinds.Reshape((12, 5, 9, 1))(x))
    x = kinds.Conv2DTranspose(3, 3, name="up")(kinds.Reshape((10, 21, 7))(x))
    model = tf_keras.Model(ids, kinds.Dense(2, name="dense")(kinds.GlobalAveragePooling2D()(x)))
    for _, layer in layers.walk(model):
        for attribute in CLUSTERED_KERNELS.get(type(layer).__name__, ()):
            weight = operator.attrgetter(attribute)(layer)
            weight.assign(shared_values(weight.numpy(), CLUSTERS))
    path = models.save(model, tmp_path_factory.mktemp("clustered") / "model.keras")
    return open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path))


def test_kernels_of_every_kind_are_found_in_the_file_with_their_clusters(source: Source, tmp_path: Path) -> None:
    conversion.convert(source.converter(), tmp_path / "model.tflite")
    (kept,) = clusters_kept(source, TfliteFile.read(tmp_path / "model.tflite"))
    assert kept.passed, kept.detail
    assert "not in the file" not in kept.detail
    # The kernel of `dense` is too small to tell whether it is clustered.
    expected = {"embedding", "attention", "attention_3", "conv1d", "lstm", "lstm_1", "separable", "conv3d", "up"}
    assert expected <= {target.layer for target in cluster_targets(source)}
    assert kept.detail.count(f"most {CLUSTERS} a channel") == len(cluster_targets(source))


def test_a_file_of_other_weights_does_not_pass(source: Source, tmp_path: Path) -> None:
    import tf_keras

    tf_keras.utils.set_random_seed(3)
    other = tf_keras.models.clone_model(source.keras)
    path = models.save(other, tmp_path / "other.keras")
    unlike = open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path))
    conversion.convert(unlike.converter(), tmp_path / "other.tflite")
    assert not invariants.clusters(TfliteFile.read(tmp_path / "other.tflite"), cluster_targets(source)).passed


def test_layers_that_are_left_as_they_are_say_why(source: Source) -> None:
    import tf_keras

    kinds = tf_keras.layers
    assert cluster_reason(source.keras.get_layer("lstm")) == ""
    assert cluster_reason(source.keras.get_layer("attention")) == ""
    assert "no weights" in cluster_reason(kinds.Flatten())
    norm, depthwise, half = kinds.BatchNormalization(), kinds.DepthwiseConv2D(3), kinds.Dense(4, dtype="mixed_float16")
    for layer, shape in ((norm, (None, 4)), (depthwise, (None, 8, 8, 2)), (half, (None, 4))):
        layer.build(shape)
    assert "BatchNormalization" in cluster_reason(norm)
    assert "depthwise" in cluster_reason(depthwise)
    assert "float16" in cluster_reason(half)
