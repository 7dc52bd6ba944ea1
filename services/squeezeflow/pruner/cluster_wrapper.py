"""TFMOT's clustering wrapper, for what it does not do: kernels inside of wrappers, zeros kept by kernel, channels that
hold few distinct values, masks and the training flag handed on, convolutions without a bias clustered by channel.

In every forward pass each weight takes the value of its nearest centroid; gradients go to the centroids and to the
weights, which may so change their cluster.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.cluster_config import GradientAggregation
from tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper import ClusterWeights

from squeezeflow.pruner.cluster_plan import KernelPlan
from squeezeflow.pruner.handing_on import HandingOn
from squeezeflow.pruner.nearest_centroid import ByChannel, Whole


@dataclass(frozen=True)
class ClusteredKernel:
    """A kernel of a layer, or of what lies inside of it.

    Attributes:
        plan: what it becomes.
        owner: the layer or cell that has it.
        attribute: its name there.
        centroids: the first ones, (clusters,) or (channels, clusters).
    """

    plan: KernelPlan
    owner: Any
    attribute: str
    centroids: np.ndarray

    @classmethod
    def of(cls, plan: KernelPlan, layer: Any, centroids: np.ndarray) -> ClusteredKernel:
        """Finds the kernel of a plan in the layer that the plan is for."""
        owner, _, attribute = plan.attribute.rpartition(".")
        return cls(plan, operator.attrgetter(owner)(layer) if owner else layer, attribute, centroids)


class Clustered(HandingOn, ClusterWeights):
    """Clusters kernels of a layer, and of layers and cells inside of it, while it is trained.

    The layers' own kernels are replaced by clustered tensors: they cannot be used without this wrapper any more.

    Args:
        layer: built, with the values of the plans.
        kernels: of this layer.
    """

    def __init__(self, layer: tf_keras.layers.Layer, kernels: Sequence[ClusteredKernel]) -> None:
        # Not TFMOT's: it asks its registry, which knows few wrappers.
        super(ClusterWeights, self).__init__(layer, name=f"cluster_{layer.name}")
        self.hand_on_to(layer)
        self.cluster_gradient_aggregation = GradientAggregation.SUM
        self._kernels = {kernel.plan.name: kernel for kernel in kernels}
        self.original_clusterable_weights: dict[str, Any] = {}
        self.cluster_centroids: dict[str, Any] = {}
        self.clustering_algorithms: dict[str, Any] = {}
        self.pulling_indices: dict[str, Any] = {}
        self.sparsity_masks: dict[str, Any] = {}
        self.zero_idx: dict[str, Any] = {}

    def get_weight_from_layer(self, weight_name: str) -> Any:
        """Gives a kernel by the name that its plan has for it."""
        kernel = self._kernels[weight_name]
        return getattr(kernel.owner, kernel.attribute)

    def set_weight_to_layer(self, weight_name: str, new_weight: Any) -> None:
        """Replaces a kernel."""
        kernel = self._kernels[weight_name]
        setattr(kernel.owner, kernel.attribute, new_weight)

    def build(self, input_shape: Any) -> None:
        """Makes centroids and the assignment of weights to them."""
        super(ClusterWeights, self).build(input_shape)
        for index, (name, kernel) in enumerate(self._kernels.items()):
            plan, original = kernel.plan, self.get_weight_from_layer(name)
            label = f"{kernel.attribute}_{index}"
            self.original_clusterable_weights[name] = original
            setattr(self, f"original_weight_{label}", original)
            self.cluster_centroids[name] = self.add_weight(
                f"cluster_centroids_{label}",
                shape=kernel.centroids.shape,
                dtype=original.dtype,
                initializer=tf_keras.initializers.Constant(kernel.centroids),
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
        """Gives the clustered kernels by the names of their plans. Only outside of a function."""
        self.update_clustered_weights_associations()
        # −0 is 0, but has a bit that deflate cannot remove.
        return {name: self.get_weight_from_layer(name).numpy() + 0.0 for name in self._kernels}

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with its clustered kernels, with those of the arguments that it takes."""
        self.update_clustered_weights_associations()
        return self.layer.call(inputs, *args, **self.taken(kwargs))

    def _zero_the_zero_centroid(self, name: str) -> None:
        centroids = self.cluster_centroids[name]
        zero = tf.gather(centroids, self.zero_idx[name], axis=-1, batch_dims=centroids.shape.rank - 1)
        centroids.assign(tf.where(centroids == zero[..., tf.newaxis], tf.zeros_like(centroids), centroids))
