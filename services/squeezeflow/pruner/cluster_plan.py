"""Which kernels of a model are clustered, into how many values, and why the others are not: decided by layer."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants import ClusterTarget, SparsityTarget
from squeezeflow.core.invariants.sparsity import PRUNED_SHARE
from squeezeflow.modelkit import layers, selection
from squeezeflow.modelkit.clusterable import CLUSTERED_KERNELS, PER_CHANNEL, cluster_reason
from squeezeflow.v1 import technique_pb2

FROZEN = "frozen (trainable is false): its weights stay as they are; save the model with it trainable to cluster it"
WHOLE = "for the whole kernel: centroids by channel are for Conv2D"


@dataclass(frozen=True)
class KernelPlan:
    """One kernel that is clustered.

    Attributes:
        name: of the layer, with that of the weight where the layer has several kernels.
        attribute: where the layer keeps it.
        values: before clustering.
        clusters: how many distinct values it may have: in every output channel with `per_channel`, else in all.
        keep_zeros: its zeros stay; 0 is one of its values.
    """

    name: str
    attribute: str
    values: np.ndarray
    clusters: int
    per_channel: bool
    keep_zeros: bool

    def promise(self, values: np.ndarray) -> ClusterTarget:
        """Gives what is promised of the kernel after clustering."""
        return ClusterTarget(self.name, values, self.clusters, self.per_channel)

    def zeros(self, values: np.ndarray) -> SparsityTarget:
        """Gives the zeros that the kernel must still have after clustering."""
        return SparsityTarget(self.name, values, float(np.mean(self.values == 0)))


@dataclass(frozen=True)
class ClusterPlan:
    """What happens to one layer.

    Attributes:
        path: its name, nested models' layers under the path of their model; of a SavedModel, the variable's.
        class_name: Keras class; of a SavedModel, the operations that take it.
        layer: None for a SavedModel.
        kernels: what is clustered; empty where nothing is.
        reason: why not; where something is, what is not as it was asked for.
    """

    path: str
    class_name: str
    layer: Any
    kernels: tuple[KernelPlan, ...] = ()
    reason: str = ""


def plan_clusters(model: Any, params: technique_pb2.Cluster) -> list[ClusterPlan]:
    """Decides for every layer of a tf_keras model.

    Errors: INVALID_PARAMETER for a pattern that names no layer, UNSUPPORTED_LAYER where nothing is left to cluster.
    """
    trained = {id(weight) for weight in model.trainable_weights}
    found: dict[int, tuple[str, Any]] = {}
    for path, layer in layers.walk(model):
        found.setdefault(id(layer), (path, layer))
    require_matches(params, [path for path, _ in found.values()])
    plans = [_plan(path, layer, params, trained) for path, layer in found.values()]
    require_some(plans)
    return plans


def require_some(plans: Sequence[ClusterPlan]) -> None:
    """Refuses a model of which nothing is clustered: UNSUPPORTED_LAYER with the reasons."""
    if any(plan.kernels for plan in plans):
        return
    weighty = [plan for plan in plans if plan.layer is None or plan.layer.weights]
    reasons = "; ".join(f"{plan.path}: {plan.reason}" for plan in weighty) or "it has no weights"
    raise SqueezeflowError(
        "UNSUPPORTED_LAYER",
        f"no layer of the model can be clustered ({reasons[:600]}): give a model with dense or convolutional layers "
        "that are trainable, or fewer clusters",
        metadata={plan.path: plan.reason for plan in weighty[:50]},
    )


def require_matches(params: technique_pb2.Cluster, paths: Sequence[str]) -> None:
    """Refuses patterns that name no layer: INVALID_PARAMETER."""
    patterns = [("layer_clusters", rule.pattern) for rule in params.layer_clusters]
    selection.require_matches([*selection.selection_patterns(params.layers), *patterns], paths)


def _plan(path: str, layer: Any, params: technique_pb2.Cluster, trained: set[int]) -> ClusterPlan:
    name = type(layer).__name__
    reason = cluster_reason(layer) or selection.left_out(params.layers, path)
    if reason:
        return ClusterPlan(path, name, layer, reason=reason)
    attributes = CLUSTERED_KERNELS[name]
    weights = [operator.attrgetter(attribute)(layer) for attribute in attributes]
    if any(id(weight) not in trained for weight in weights):
        return ClusterPlan(path, name, layer, reason=FROZEN)
    names = [path] if len(weights) == 1 else [f"{path}/{_weight_name(layer, weight)}" for weight in weights]
    values = [weight.numpy() for weight in weights]
    found = list(zip(names, attributes, values, strict=True))
    kernels, reason = plan_kernels(path, found, params, by_channel=name in PER_CHANNEL)
    return ClusterPlan(path, name, layer, kernels, reason)


def plan_kernels(
    path: str, found: Sequence[tuple[str, str, np.ndarray]], params: technique_pb2.Cluster, *, by_channel: bool
) -> tuple[tuple[KernelPlan, ...], str]:
    """Decides for the kernels of one layer: gives what is clustered, and what is not as it was asked for.

    Args:
        found: (name, attribute, values) of each.
        by_channel: its channels could have centroids of their own.
    """
    rules = [(rule.pattern, rule.number_of_clusters) for rule in params.layer_clusters]
    clusters = selection.setting_of(rules, path, params.number_of_clusters)
    per_channel = params.per_channel and by_channel
    fewest = min(values.size // values.shape[-1] if per_channel else values.size for _, _, values in found)
    if fewest <= clusters:
        where = " in an output channel" if per_channel else ""
        return (), f"too few weights ({fewest}{where}) to share {clusters} values"
    kernels = (
        KernelPlan(name, attribute, values, clusters, per_channel, _keeps_zeros(values, params))
        for name, attribute, values in found
    )
    return tuple(kernels), WHOLE if params.per_channel and not per_channel else ""


def _keeps_zeros(kernel: np.ndarray, params: technique_pb2.Cluster) -> bool:
    return bool(params.preserve_sparsity and np.mean(kernel == 0) >= PRUNED_SHARE)


def _weight_name(layer: Any, weight: Any) -> str:
    name: str = weight.name.split(":")[0].removeprefix(f"{layer.name}/")
    return name


def clustered_kernels(model: Any, plans: Sequence[ClusterPlan]) -> dict[str, np.ndarray]:
    """Gives the kernels of the plans by name, from any copy of the model."""
    found = dict(layers.walk(model))
    return {
        kernel.name: np.asarray(operator.attrgetter(kernel.attribute)(found[plan.path]))
        for plan in plans
        for kernel in plan.kernels
    }
