"""Which kernels of a model are clustered, into how many values, and why the others are not: decided by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeezeflow.core.invariants import ClusterTarget, SparsityTarget
from squeezeflow.core.invariants.sparsity import PRUNED_SHARE
from squeezeflow.modelkit import selection
from squeezeflow.modelkit.clusterable import PER_CHANNEL
from squeezeflow.modelkit.source import Source
from squeezeflow.pruner import saved_model
from squeezeflow.pruner.candidates import Candidate, candidates, refuse_all, require_matches
from squeezeflow.v1 import technique_pb2

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
        path: its name, nested models' layers under the path of their model, those inside of a wrapper under its name;
            of a SavedModel, the variable's.
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
    plans = [_plan(candidate, params) for candidate in candidates(model, "cluster", params.layers, _rules(params))]
    _require_some(plans, "layer")
    return plans


def plan_variables(source: Source, params: technique_pb2.Cluster) -> list[ClusterPlan]:
    """Decides for every variable with two axes or more that the signature of a SavedModel reads.

    Errors: INVALID_PARAMETER for a pattern that names no variable, UNSUPPORTED_LAYER where nothing is left to cluster.
    """
    saved_model.prunable_variables(source)  # Refuses a graph without kernels.
    variables = saved_model.variables(source)
    require_matches(params.layers, _rules(params), [variable.name for variable in variables])
    plans = []
    for variable in variables:
        operations = variable.variable.kernel_of or variable.variable.read_by
        reason = variable.reason or selection.left_out(params.layers, variable.name)
        kernels: tuple[KernelPlan, ...] = ()
        if not reason:
            found = [(variable.name, "", variable.values)]
            by_channel = operations == ("Conv2D",) and variable.values.ndim == 4
            kernels, reason = _plan_kernels(variable.name, found, params, by_channel=by_channel)
        plans.append(ClusterPlan(variable.name, ", ".join(operations[:3]), None, kernels, reason))
    _require_some(plans, "variable")
    return plans


def _require_some(plans: Sequence[ClusterPlan], what: str) -> None:
    if not any(plan.kernels for plan in plans):
        weighty = [plan for plan in plans if plan.layer is None or plan.layer.weights]
        refuse_all({plan.path: plan.reason for plan in weighty}, "cluster", what)


def _rules(params: technique_pb2.Cluster) -> list[tuple[str, str]]:
    return [("layer_clusters", rule.pattern) for rule in params.layer_clusters]


def _plan(candidate: Candidate, params: technique_pb2.Cluster) -> ClusterPlan:
    path, layer = candidate.part.path, candidate.part.layer
    name = type(layer).__name__
    if candidate.reason:
        return ClusterPlan(path, name, layer, reason=candidate.reason)
    found = [(kernel.name, kernel.attribute, kernel.weight.numpy()) for kernel in candidate.kernels]
    within = candidate.part.within
    kernels, reason = _plan_kernels(path, found, params, within=within, by_channel=name in PER_CHANNEL)
    return ClusterPlan(path, name, layer, kernels, reason)


def _plan_kernels(
    path: str,
    found: Sequence[tuple[str, str, np.ndarray]],
    params: technique_pb2.Cluster,
    *,
    within: Sequence[str] = (),
    by_channel: bool,
) -> tuple[tuple[KernelPlan, ...], str]:
    """Decides for the kernels of one layer: gives what is clustered, and what is not as it was asked for.

    Args:
        found: (name, attribute, values) of each.
        within: the names of the wrappers that the layer lies in.
        by_channel: its channels could have centroids of their own.
    """
    rules = [(rule.pattern, rule.number_of_clusters) for rule in params.layer_clusters]
    clusters = selection.setting_of(rules, path, params.number_of_clusters, within)
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
