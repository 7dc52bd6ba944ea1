"""TFMOT's clustering wrapper, for what it does not do: zeros kept by kernel, channels that hold few distinct values,
masks and the training flag handed on to the layer, convolutions without a bias clustered by channel.

In every forward pass each weight takes the value of its nearest centroid; gradients go to the centroids and to the
weights, which may so change their cluster.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper import ClusterWeights

from squeezeflow.pruner.cluster_plan import KernelPlan
from squeezeflow.pruner.nearest_centroid import ByChannel, Whole


class Clustered(ClusterWeights):
    """Clusters kernels of a layer while it is trained.

    The layer's own kernels are replaced by clustered tensors: it cannot be used without this wrapper any more.

    Args:
        layer: built, with the values of the plans.
        kernels: each with its first centroids, (clusters,) or (channels, clusters).
    """

    def __init__(self, layer: tf_keras.layers.Layer, kernels: list[tuple[KernelPlan, np.ndarray]]) -> None:
        super().__init__(layer, kernels[0][0].clusters)
        self._kernels = kernels
        self._accepted = frozenset(inspect.signature(layer.call).parameters)
        self.supports_masking = layer.supports_masking

    def get_weight_from_layer(self, weight_name: str) -> Any:
        """Gives a kernel by the name that its plan has for it, with dots."""
        return operator.attrgetter(weight_name)(self.layer)

    def set_weight_to_layer(self, weight_name: str, new_weight: Any) -> None:
        """Replaces a kernel."""
        owner, _, attribute = weight_name.rpartition(".")
        setattr(operator.attrgetter(owner)(self.layer) if owner else self.layer, attribute, new_weight)

    def build(self, input_shape: Any) -> None:
        """Makes centroids and the assignment of weights to them."""
        super(ClusterWeights, self).build(input_shape)
        for plan, centroids in self._kernels:
            name, original = plan.attribute, self.get_weight_from_layer(plan.attribute)
            label = name.replace(".", "_")
            self.original_clusterable_weights[name] = original
            setattr(self, f"original_weight_{label}", original)
            self.cluster_centroids[name] = self.add_weight(
                f"cluster_centroids_{label}",
                shape=centroids.shape,
                dtype=original.dtype,
                initializer=tf_keras.initializers.Constant(centroids),
            )
            made = ByChannel if plan.per_channel else Whole
            # The layout of Keras kernels does not depend on the layer's data_format.
            algorithm = made(self.cluster_centroids[name], self.cluster_gradient_aggregation, "channels_last")
            self.clustering_algorithms[name] = algorithm
            indices = algorithm.get_pulling_indices(original)
            self.pulling_indices[name] = self.add_weight(
                f"pulling_indices_{label}",
                shape=indices.shape,
                dtype=tf.int64,
                trainable=False,
                initializer=tf_keras.initializers.Constant(indices),
            )
            if plan.keep_zeros:
                clustered = algorithm.get_clustered_weight(indices, original)
                self.sparsity_masks[name] = tf.cast(tf.not_equal(clustered, 0), original.dtype)
                self.zero_idx[name] = tf.argmin(tf.abs(self.cluster_centroids[name]), axis=-1)

    def update_clustered_weights_associations(self) -> None:
        """Assigns every weight to its nearest centroid; the layer's kernels become the centroids."""
        for name, original in self.original_clusterable_weights.items():
            weight = original
            if name in self.sparsity_masks:
                self._zero_the_zero_centroid(name)
                weight = weight * self.sparsity_masks[name]
            algorithm = self.clustering_algorithms[name]
            indices = algorithm.get_pulling_indices(weight)
            self.pulling_indices[name].assign(indices)
            self.set_weight_to_layer(name, algorithm.get_clustered_weight(indices, weight))

    def clustered_values(self) -> dict[str, np.ndarray]:
        """Gives the clustered kernels by attribute. Only outside of a function."""
        self.update_clustered_weights_associations()
        # −0 is 0, but has a bit that deflate cannot remove.
        return {plan.attribute: self.get_weight_from_layer(plan.attribute).numpy() + 0.0 for plan, _ in self._kernels}

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with its clustered kernels, with those of the arguments that it takes."""
        self.update_clustered_weights_associations()
        given = {
            name: value for name, value in kwargs.items() if name in self._accepted or name not in ("training", "mask")
        }
        return self.layer.call(inputs, *args, **given)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Gives the layer's mask."""
        return self.layer.compute_mask(inputs, mask)

    def _zero_the_zero_centroid(self, name: str) -> None:
        centroids = self.cluster_centroids[name]
        zero = tf.gather(centroids, self.zero_idx[name], axis=-1, batch_dims=centroids.shape.rank - 1)
        centroids.assign(tf.where(centroids == zero[..., tf.newaxis], tf.zeros_like(centroids), centroids))
