"""Weight clustering (Han, Mao and Dally 2015, arXiv:1510.00149), by TFMOT; sparsity-preserving for pruned models.

The weights of every kernel share a few values, its centroids, which are trained. A copy of the model is wrapped and
fitted, since the wrapper takes the kernels out of the layers that it is given; what was trained is then put into the
model itself: names, nesting and frozen layers as they were. What is promised is read again from the saved file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.cluster_config import CentroidInitialization

from squeezeflow.core import invariants
from squeezeflow.core.step import Report, StepInputs, StepOutputs
from squeezeflow.modelkit import layers
from squeezeflow.modelkit.finetune import Training
from squeezeflow.modelkit.layer_kernels import parts
from squeezeflow.modelkit.source import Source
from squeezeflow.pruner import cluster_plan, step
from squeezeflow.pruner.cluster_centroids import METHODS, first_centroids, share_values
from squeezeflow.pruner.cluster_plan import ClusterPlan, KernelPlan
from squeezeflow.pruner.cluster_wrapper import Clustered, ClusteredKernel
from squeezeflow.pruner.method import Arrays, Wrapped
from squeezeflow.v1 import step_pb2, technique_pb2


def run(params: technique_pb2.Cluster, inputs: StepInputs, report: Report) -> StepOutputs:
    """Clusters a model and writes it, without wrappers, into the step's folder: `model.keras`.

    With `one_shot` a SavedModel stays one, and needs no data.

    Errors: INVALID_PARAMETER (a pattern that names no layer, a loss that cannot be inferred or does not fit),
    UNSUPPORTED_INPUT (not a Keras model), UNSUPPORTED_LAYER (nothing to cluster), DATA_MISSING (no train samples),
    DATA_MISMATCH, NON_FINITE_OUTPUT, OUTPUT_MISMATCH, INVARIANT_BROKEN, and those of opening a model.
    """
    return step.run(Clustering(params), inputs, report)


@dataclass(frozen=True)
class Clustering:
    """Clustering as one request asks for it."""

    params: technique_pb2.Cluster
    technique = "cluster"

    def plan(self, model: tf_keras.Model) -> list[ClusterPlan]:
        """Decides for every layer."""
        return cluster_plan.plan_clusters(model, self.params)

    def plan_variables(self, source: Source) -> list[ClusterPlan]:
        """Decides for every variable of a SavedModel."""
        return cluster_plan.plan_variables(source, self.params)

    def changed(self, plans: Sequence[ClusterPlan], seed: int) -> dict[str, np.ndarray]:
        """Gives the kernels with every weight at the centroid of its cluster, by k-means."""
        tf_keras.utils.set_random_seed(seed)
        method = METHODS[self.params.initialization]
        return {kernel.name: share_values(kernel, method, seed) for plan in plans for kernel in plan.kernels}

    def wrap(self, model: tf_keras.Model, plans: Sequence[ClusterPlan], training: Training, workdir: Path) -> Wrapped:
        """Wraps the layers of a copy, whose kernels are then put into the model."""
        copy = WrappedCopy(model, plans, METHODS[self.params.initialization], training.seed)
        return Wrapped(copy.wrapped, partial(copy.put_into, model))

    def promises(self, found: Arrays, plans: Sequence[ClusterPlan]) -> list[step_pb2.Invariant]:
        """Gives `clusters` of all kernels, and `sparsity` where zeros are kept."""
        kernels = [kernel for plan in plans for kernel in plan.kernels]
        kept = [kernel.zeros(found[kernel.name]) for kernel in kernels if kernel.keep_zeros]
        return [
            invariants.clusters(found, [kernel.promise(found[kernel.name]) for kernel in kernels]),
            *([invariants.sparsity(found, kept)] if kept else []),
        ]

    def reached(self, plan: ClusterPlan, found: Arrays) -> str:
        """Says how many values the kernels of a layer have now, and what of them is not as it was asked for."""
        parts = [_reached(kernel, found[kernel.name]) for kernel in plan.kernels]
        return "; ".join([*parts, plan.reason] if plan.reason else parts)


def _reached(plan: KernelPlan, values: np.ndarray) -> str:
    where, axis = (" a channel", -1) if plan.per_channel else ("", None)
    text = f"{invariants.distinct(values, axis)} of {plan.clusters} values{where}"
    return f"{text}, sparsity {np.mean(values == 0):.3f}" if plan.keep_zeros else text


class WrappedCopy:
    """A copy of a model in which the layers that are to be clustered are wrapped, and all others are not.

    Attributes:
        wrapped: what is fitted: the same inputs and outputs as the model.
    """

    def __init__(
        self, model: tf_keras.Model, plans: Sequence[ClusterPlan], method: CentroidInitialization, seed: int
    ) -> None:
        copy = copy_of(model)
        # Before wrapping: it takes kernels out of their layers.
        self._weights = list(copy.weights)
        self._wrappers: list[Clustered] = []
        chosen = {plan.path: plan for plan in plans if plan.kernels}
        found: dict[int, list[ClusteredKernel]] = {}
        for part in parts(copy):
            for plan in chosen[part.path].kernels if part.path in chosen else ():
                kernel = ClusteredKernel.of(plan, part.layer, first_centroids(plan, method, seed))
                found.setdefault(id(part.outer), []).append(kernel)

        def clone(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
            if isinstance(layer, tf_keras.Model):
                return tf_keras.models.clone_model(layer, clone_function=clone)
            if id(layer) not in found:
                return layer
            wrapper = Clustered(layer, found[id(layer)])
            self._wrappers.append(wrapper)
            return wrapper

        self.wrapped = tf_keras.models.clone_model(copy, clone_function=clone)

    def put_into(self, model: tf_keras.Model) -> None:
        """Gives the model that this was made from the weights that were trained, the clustered kernels among them."""
        clustered: dict[int, np.ndarray] = {}
        for wrapper in self._wrappers:
            values = wrapper.clustered_values()
            originals: Mapping[str, object] = wrapper.original_clusterable_weights
            clustered |= {id(originals[name]): values[name] for name in values}
        for weight, trained in zip(model.weights, self._weights, strict=True):
            weight.assign(clustered[id(trained)] if id(trained) in clustered else trained.numpy())


def copy_of(model: tf_keras.Model) -> tf_keras.Model:
    """Gives a model with the same layers, weights and frozen layers, which shares nothing with the first."""
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for (_, layer), (_, other) in zip(layers.walk(model), layers.walk(copy), strict=True):
        other.trainable = layer.trainable
    # After the wrappers, which tell all that they hold.
    for part, other in zip(parts(model), parts(copy), strict=True):
        other.layer.trainable = part.layer.trainable
    return copy
