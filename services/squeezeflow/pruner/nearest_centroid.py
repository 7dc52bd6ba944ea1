"""The nearest centroid of every weight as TFMOT finds it, bit for bit, in less time.

TFMOT compares every weight with every centroid, in every step: with 256 clusters a step takes more than twice as long
as a plain one. Here the two neighbours of a weight among the sorted centroids are looked up, and only they are
compared, with TFMOT's own arithmetic and its preference for the first of equals. Rounding can make a third centroid
just as near; that is seen, and such a step compares with all. By channel TFMOT makes a graph for every channel; here
it is one.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_model_optimization.python.core.clustering.keras.clustering_algorithm import (
    ClusteringAlgorithm,
    ClusteringAlgorithmPerChannel,
)

# With fewer centroids, comparing with all of them is as quick.
SEARCH_FROM = 32


class Whole(ClusteringAlgorithm):
    """Centroids for a whole kernel."""

    def get_pulling_indices(self, weight: Any, centroids: Any = None) -> tf.Tensor:
        """Gives the index (int64) of the nearest centroid, the first of equally near ones, for weights of any shape."""
        chosen = tf.convert_to_tensor(self.cluster_centroids if centroids is None else centroids)
        if chosen.shape[0] < SEARCH_FROM:
            return compare_all(weight, chosen)
        return search(weight, chosen)


class ByChannel(ClusteringAlgorithmPerChannel):
    """Centroids (channels, clusters) for the output channels of a kernel, which come last."""

    def get_pulling_indices(self, weight: Any) -> tf.Tensor:
        """Gives, for weights (…, channels), the index of the nearest centroid of their channel."""
        return compare_all(weight, tf.convert_to_tensor(self.cluster_centroids))

    def get_clustered_weight(self, pulling_indices: Any, original_weight: Any) -> tf.Tensor:
        """Gives the centroids that the indices name; gradients go to centroids and weights alike."""
        rank = original_weight.shape.rank
        channels_first = [rank - 1, *range(rank - 1)]
        channels_last = [*range(1, rank), 0]
        indices = tf.transpose(pulling_indices, channels_first)
        clustered = tf.gather(tf.convert_to_tensor(self.cluster_centroids), indices, batch_dims=1)
        return self.add_gradient_to_original_weight(
            tf.transpose(clustered, channels_last), tf.identity(original_weight)
        )


def compare_all(weights: Any, centroids: tf.Tensor) -> tf.Tensor:
    """Compares every weight with every centroid: (clusters,), or (channels, clusters) for weights (…, channels)."""
    return tf.argmin(tf.abs(tf.expand_dims(weights, -1) - centroids), axis=-1)


def search(weights: Any, centroids: tf.Tensor) -> tf.Tensor:
    """Gives what `compare_all` gives, by looking only at the neighbours of a weight among the sorted centroids."""
    order = tf.argsort(centroids, stable=True)
    ordered = tf.gather(centroids, order)
    infinity = tf.constant([float("inf")], ordered.dtype)
    # Of equal centroids the first one counts; stable sorting keeps it first.
    first, behind = tf.searchsorted(ordered, ordered), tf.searchsorted(ordered, ordered, side="right")
    padded = tf.concat([-infinity, ordered, infinity], axis=0)
    # By the number of centroids below a weight: the centroid below, the one above, and the next ones on both sides.
    below, above = tf.concat([-infinity, ordered], axis=0), tf.concat([ordered, infinity], axis=0)
    lower = tf.concat([-infinity, tf.gather(padded, first)], axis=0)
    higher = tf.concat([tf.gather(padded, behind + 1), infinity], axis=0)
    neighbours = tf.stack([below, above, lower, higher], axis=-1)
    names = tf.gather(order, first)
    indices = tf.stack([tf.concat([names[:1], names], axis=0), tf.concat([names, names[-1:]], axis=0)], axis=-1)

    flat = tf.reshape(tf.convert_to_tensor(weights), [-1])
    place = tf.searchsorted(ordered, flat)
    distances = tf.abs(tf.expand_dims(flat, -1) - tf.gather(neighbours, place))
    under, over = distances[:, 0], distances[:, 1]
    nearest = tf.minimum(under, over)
    # Not a number: neither is less.
    clear = tf.reduce_all(tf.minimum(distances[:, 2], distances[:, 3]) > nearest) & tf.reduce_all(ordered == ordered)

    def choose() -> tf.Tensor:
        pair = tf.gather(indices, place)
        equal = tf.minimum(pair[:, 0], pair[:, 1])
        found = tf.where(under < over, pair[:, 0], tf.where(over < under, pair[:, 1], equal))
        return tf.cast(tf.reshape(found, tf.shape(weights)), tf.int64)

    return tf.cond(clear, choose, lambda: compare_all(weights, centroids))
