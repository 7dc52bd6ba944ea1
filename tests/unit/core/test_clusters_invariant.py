"""Clusters of a kernel are found again in real files, whatever BatchNormalization and int8 scales make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.layer_models import layer_models, shared_values

from squeezeflow.core import invariants
from squeezeflow.core.invariants import ClusterTarget
from squeezeflow.core.tflite import TfliteFile

CLUSTERS = 8


def file_of(name: str) -> TfliteFile:
    return TfliteFile.read(layer_models() / f"{name}.tflite")


def kernels() -> dict[str, np.ndarray]:
    with np.load(layer_models() / "clusters.npz") as arrays:
        return dict(arrays)


def targets(most: int = CLUSTERS) -> list[ClusterTarget]:
    return [ClusterTarget(layer, values, most, layer == "by_channel") for layer, values in kernels().items()]


@pytest.mark.parametrize("mode", ["float32", "float16", "dynamic", "int8"])
def test_no_channel_of_the_file_has_more_values_than_clusters_were_promised(mode):
    result = invariants.clusters(file_of(f"clustered_{mode}"), targets())
    assert result.name == "clusters"
    assert result.passed, result.detail
    assert "not in the file" not in result.detail
    assert "hidden 8 values a channel, 8 in the tensor, most 8 a channel" in result.detail


def test_batch_normalization_multiplies_the_values_of_a_tensor_but_not_of_a_channel():
    result = invariants.clusters(file_of("clustered_float32"), targets()[:1])
    assert result.detail == "by_channel 8 values a channel, 128 in the tensor, most 8 a channel"


def test_one_value_more_than_promised_breaks_the_promise():
    result = invariants.clusters(file_of("clustered_int8"), targets(most=7))
    assert not result.passed
    assert result.detail.startswith("by_channel 8 values a channel")


def test_one_more_value_in_one_channel_of_the_file_breaks_the_promise(tmp_path: Path):
    file = file_of("clustered_float32")
    data = file.path.read_bytes()
    weight = next(w for w in file.weights if w.tensor.size == kernels()["whole"].size)
    values = weight.values.copy()
    values[3, 0, 0, 0] += 1e-4
    at = data.index(bytes(weight.tensor.buffer))
    (tmp_path / "edited.tflite").write_bytes(data[:at] + values.tobytes() + data[at + values.nbytes :])
    result = invariants.clusters(TfliteFile.read(tmp_path / "edited.tflite"), targets())
    assert not result.passed
    assert result.detail.startswith("whole 9 values a channel")


def test_values_of_blocks_with_scales_of_their_own_are_told_but_not_judged():
    file = file_of("clustered_int8")
    graph = file.main
    chosen = next(t for t in graph.tensors if t.constant and t.size == kernels()["hidden"].size)
    blocks = replace(chosen, block_size=32, quantized_dimension=-1)
    tensors = tuple(blocks if tensor is chosen else tensor for tensor in graph.tensors)
    edited = TfliteFile(file.path, file.size, (replace(graph, tensors=tensors),), file.signatures)
    result = invariants.clusters(edited, [target for target in targets(most=7) if target.layer == "hidden"])
    assert result.passed
    assert result.detail.startswith("hidden 8 values in the tensor (stored in blocks")


def test_a_file_that_was_not_clustered_does_not_pass():
    with np.load(layer_models() / "kernels.npz") as arrays:
        found = [ClusterTarget(layer, values, CLUSTERS) for layer, values in dict(arrays).items()]
    result = invariants.clusters(file_of("cnn_float32"), found)
    assert not result.passed
    assert "hidden 2048 values a channel" in result.detail


def test_a_kernel_that_the_file_does_not_hold_is_told_and_alone_proves_nothing():
    missing = ClusterTarget("branch", np.zeros((7, 7)), 4)
    result = invariants.clusters(file_of("clustered_float32"), [*targets(), missing])
    assert result.passed
    assert "not in the file: branch" in result.detail
    assert not invariants.clusters(file_of("clustered_float32"), [missing]).passed


def test_nothing_promised_is_nothing_broken():
    assert invariants.clusters({}, []).passed


def test_keras_kernels_are_counted_by_layer_name():
    assert invariants.clusters(kernels(), targets()).passed
    whole = [ClusterTarget("by_channel", kernels()["by_channel"], CLUSTERS)]
    assert not invariants.clusters(kernels(), whole).passed


def test_clustered_kernels_are_recognised_and_found_again_in_every_file():
    found = {target.layer: target for target in invariants.cluster_targets(kernels())}
    assert set(found) == set(kernels())
    assert [target.layer for target in found.values() if target.per_channel] == ["by_channel"]
    assert {target.number_of_clusters for target in found.values()} == {CLUSTERS}
    assert invariants.clusters(file_of("clustered_int8"), list(found.values())).passed


def test_kernels_that_are_pruned_or_trained_or_tiny_are_not_recognised_as_clustered():
    random = np.random.default_rng(0)
    pruned = random.normal(size=(64, 32)).astype(np.float32)
    pruned[np.abs(pruned) < 1.2] = 0
    half = random.normal(size=(1024, 128)).astype(np.float16).astype(np.float32)
    assert not invariants.cluster_targets(
        {
            "pruned": pruned,
            "trained": random.normal(size=(3, 3, 16, 8)).astype(np.float32),
            "saved as float16": half,
            "tiny": np.array([[1.0, 2.0], [1.0, 2.0]]),
            "empty": np.zeros((32, 32)),
            "bias": np.ones(64),
        }
    )


def test_zero_is_one_of_the_clusters_of_a_pruned_and_clustered_kernel():
    kernel = shared_values(np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32), 8)
    kernel[:, ::2] = 0
    kernel[0, 0] = -0.0
    (target,) = invariants.cluster_targets({"dense": kernel})
    assert target.number_of_clusters == 9
    assert invariants.distinct(np.array([0.0, -0.0, 1.0])) == 2


def test_repeated_float16_values_are_counted_once():
    """numpy 2.4 sorts such arrays wrong on some processors."""
    random = np.random.default_rng(0)
    counts = [
        invariants.distinct(random.choice(np.arange(8, dtype=np.float16) / 3, size=size))
        for size in random.integers(20000, 30000, 40)
    ]
    assert counts == [8] * 40
