"""The quick search for the nearest centroid agrees with TFMOT's comparison of all, bit for bit, in training too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_model_optimization.python.core.clustering.keras import clustering_algorithm as tfmot

from squeezeflow.pruner.nearest_centroid import SEARCH_FROM, ByChannel, Whole, compare_all, search

RNG = np.random.default_rng(0)


def centroids_and_weights(case: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    centroids = (RNG.normal(size=60) * scale).astype(np.float32)
    weights = (RNG.normal(size=(40, 10)) * scale).astype(np.float32)
    if case == "equal centroids":
        centroids[RNG.integers(0, 60, 30)] = 0
        centroids[:5] = centroids[5]
    if case == "weights at centroids":
        weights = RNG.choice(centroids, size=weights.shape)
    if case == "weights half way":
        centroids = (np.arange(60) * np.float32(scale)).astype(np.float32)
        weights = ((RNG.integers(0, 59, weights.shape) + 0.5) * scale).astype(np.float32)
    if case == "distances that rounding makes equal":
        centroids = (centroids * 1e-8).astype(np.float32)
    if case == "not a number":
        weights[3, 3] = centroids[7] = np.nan
    RNG.shuffle(centroids)
    return centroids, weights


@pytest.mark.parametrize("scale", [1e-30, 0.05, 1.0, 1e6])
@pytest.mark.parametrize(
    "case",
    [
        *("distinct centroids", "equal centroids", "weights at centroids", "weights half way"),
        *("distances that rounding makes equal", "not a number"),
    ],
)
def test_the_search_finds_the_first_of_the_nearest_centroids(case: str, scale: float) -> None:
    centroids, weights = centroids_and_weights(case, scale)
    expected = tf.argmin(tf.abs(weights[..., None] - tf.constant(centroids)), axis=-1).numpy()
    np.testing.assert_array_equal(search(weights, tf.constant(centroids)).numpy(), expected)
    np.testing.assert_array_equal(compare_all(weights, tf.constant(centroids)).numpy(), expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_centroids_have_no_neighbours_and_are_found_all_the_same(count: int) -> None:
    centroids, weights = centroids_and_weights("distinct centroids", 1.0)
    few = tf.constant(centroids[:count])
    np.testing.assert_array_equal(search(weights, few).numpy(), compare_all(weights, few).numpy())


def trained(made: Any, kernel: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits kernel and centroids to a random target for 40 steps, with Adam's rule of signs."""
    kept, shared = tf.Variable(kernel), tf.Variable(centroids)
    algorithm = made(shared, data_format="channels_last")
    target = tf.constant(np.random.default_rng(1).normal(size=kernel.shape).astype(np.float32))

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            clustered = algorithm.get_clustered_weight(algorithm.get_pulling_indices(kept), kept)
            loss = tf.reduce_mean((clustered - target) ** 2 * (1 + tf.abs(target)))
        for variable, gradient in zip((kept, shared), tape.gradient(loss, [kept, shared]), strict=True):
            variable.assign_sub(0.02 * tf.convert_to_tensor(gradient) / (1e-3 + tf.abs(tf.convert_to_tensor(gradient))))

    for _ in range(40):
        step()
    return kept.numpy(), shared.numpy()


@pytest.mark.parametrize(
    ("ours", "theirs", "shape", "centroids"),
    [
        (Whole, tfmot.ClusteringAlgorithm, (64, 80), (256,)),
        (Whole, tfmot.ClusteringAlgorithm, (64, 80), (SEARCH_FROM - 1,)),
        (ByChannel, tfmot.ClusteringAlgorithmPerChannel, (3, 3, 8, 12), (12, 6)),
    ],
)
def test_training_gives_the_same_bits_as_with_tfmots_comparison(
    ours: Any, theirs: Any, shape: tuple[int, ...], centroids: tuple[int, ...]
) -> None:
    tf.config.experimental.enable_op_determinism()
    random = np.random.default_rng(2)
    kernel, first = (random.normal(size=size).astype(np.float32) for size in (shape, centroids))
    expected, found = trained(theirs, kernel, first), trained(ours, kernel, first)
    assert not np.array_equal(expected[1], first)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
