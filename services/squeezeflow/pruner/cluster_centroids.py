"""The first centroids of a kernel, by TFMOT's methods, and k-means from there without any training.

TFMOT's own initialisers fail where a kernel or a channel has fewer distinct values than clusters, which pruned channels
often do; such values become the centroids themselves.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.clustering.keras import clustering_centroids
from tensorflow_model_optimization.python.core.clustering.keras.cluster_config import CentroidInitialization

from squeezeflow.pruner.cluster_plan import KernelPlan
from squeezeflow.v1 import technique_pb2

METHODS = {
    technique_pb2.Cluster.INITIALIZATION_LINEAR: CentroidInitialization.LINEAR,
    technique_pb2.Cluster.INITIALIZATION_RANDOM: CentroidInitialization.RANDOM,
    technique_pb2.Cluster.INITIALIZATION_DENSITY_BASED: CentroidInitialization.DENSITY_BASED,
    technique_pb2.Cluster.INITIALIZATION_KMEANS_PLUS_PLUS: CentroidInitialization.KMEANS_PLUS_PLUS,
}
# TFMOT's; added to, so that another seed gives other centroids.
KMEANS_SEED = 9
# Lloyd's iterations end when nothing moves; on kernels of trained networks after 20 to 60.
ITERATIONS = 100


def first_centroids(plan: KernelPlan, method: CentroidInitialization, seed: int) -> np.ndarray:
    """Gives the centroids from which training starts: (clusters,), or (channels, clusters) by channel; float32."""
    # TFMOT's initialisers are for float32; and numpy 2.4 sorts float16 wrong where values repeat.
    values = plan.values.astype(np.float32)
    if not plan.per_channel:
        return _centroids(values.reshape(-1), plan, method, seed)
    channels = np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)
    return np.stack([_centroids(channel, plan, method, seed) for channel in channels])


def share_values(plan: KernelPlan, method: CentroidInitialization, seed: int) -> np.ndarray:
    """Gives the kernel with every weight at its cluster's centroid, by Lloyd's k-means from the first centroids."""
    centroids = first_centroids(plan, method, seed)
    if not plan.per_channel:
        return _shared(plan.values.reshape(-1), centroids, keep_zeros=plan.keep_zeros).reshape(plan.values.shape)
    moved = np.moveaxis(plan.values, -1, 0)
    rows = zip(moved.reshape(len(moved), -1), centroids, strict=True)
    shared = np.stack([_shared(row, first, keep_zeros=plan.keep_zeros) for row, first in rows])
    return np.moveaxis(shared.reshape(moved.shape), 0, -1)


def _centroids(values: np.ndarray, plan: KernelPlan, method: CentroidInitialization, seed: int) -> np.ndarray:
    if not plan.keep_zeros:
        return _of_interval(values, plan.clusters, method, seed, keep_zeros=False)
    negative, positive = values[values < 0], values[values > 0]
    weights = negative.size + positive.size
    below = round((plan.clusters - 1) * negative.size / weights) if weights else 0
    parts = [
        _of_interval(negative, below, method, seed, keep_zeros=True),
        np.zeros(1, values.dtype),
        _of_interval(positive, plan.clusters - 1 - below, method, seed, keep_zeros=True),
    ]
    return np.concatenate(parts)


def _of_interval(
    values: np.ndarray, count: int, method: CentroidInitialization, seed: int, *, keep_zeros: bool
) -> np.ndarray:
    if count <= 0:
        return np.zeros(0, values.dtype)
    distinct = np.unique(values)
    if distinct.size <= count:
        # What is left over repeats one of them (0 where there is none), and is never the nearest.
        return np.pad(distinct, (0, count - distinct.size), mode="edge" if distinct.size else "constant")
    if method is CentroidInitialization.KMEANS_PLUS_PLUS:
        chosen = tf.raw_ops.KmeansPlusPlusInitialization(
            points=values.reshape(-1, 1).astype(np.float32),
            num_to_sample=count,
            seed=KMEANS_SEED + seed,
            num_retries_per_sample=-1,
        )
        return chosen.numpy().reshape(-1)
    made = clustering_centroids.CentroidsInitializerFactory.get_centroid_initializer(method)
    initialiser = made(tf.constant(values), count, preserve_sparsity=keep_zeros)
    return initialiser._calculate_centroids_for_interval(tf.constant(values), count).numpy()


def _shared(values: np.ndarray, centroids: np.ndarray, *, keep_zeros: bool) -> np.ndarray:
    """Moves centroids to the means of their values until nothing changes; 0 stays where zeros are kept."""
    centroids = np.sort(centroids.astype(np.float64))
    chosen = _nearest(values, centroids)
    for _ in range(ITERATIONS):
        sums = np.bincount(chosen, values, len(centroids))
        counts = np.bincount(chosen, minlength=len(centroids))
        moved = np.divide(sums, counts, out=centroids.copy(), where=counts > 0)
        if keep_zeros:
            moved[centroids == 0] = 0
        if np.array_equal(moved, centroids):
            break
        centroids = np.sort(moved)
        chosen = _nearest(values, centroids)
    return (centroids[chosen] + 0.0).astype(values.dtype)


def _nearest(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    return np.searchsorted((ordered[:-1] + ordered[1:]) / 2, values)
