"""Which kernels of a model are pruned, and why the others are not: decided by layer, before anything is wrapped."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import layers, support

# Reasons that support.py, which knows the layer alone, cannot give.
FROZEN = "frozen (trainable is false): its weights stay as they are; save the model with it trainable to prune it"
MIXED = "computes in float16 (mixed precision), which TFMOT cannot mask; save the model in float32"


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer.

    Attributes:
        path: its name, nested models' layers under the path of their model.
        class_name: its Keras class.
        layer: the layer.
        kernels: positions in `layer.weights` of what is pruned; empty where nothing is.
        reason: why not; empty where something is.
    """

    path: str
    class_name: str
    layer: Any
    kernels: tuple[int, ...] = ()
    reason: str = ""

    def values(self, layer: Any) -> dict[str, np.ndarray]:
        """Gives the kernels that are pruned, by name, from this layer or the same one in another copy of the model."""
        if len(self.kernels) == 1:
            return {self.path: layer.weights[self.kernels[0]].numpy()}
        weights = [layer.weights[index] for index in self.kernels]
        names = [weight.name.split(":")[0].removeprefix(f"{layer.name}/") for weight in weights]
        return {f"{self.path}/{name}": weight.numpy() for name, weight in zip(names, weights, strict=True)}


def plan_layers(model: Any, sparsity: float) -> list[LayerPlan]:
    """Decides for every layer of a tf_keras model.

    Args:
        sparsity: share of zeros in every kernel, above 0 and below 1.

    Errors: UNSUPPORTED_LAYER where nothing is left to prune.
    """
    trained = {id(weight) for weight in model.trainable_weights}
    plans: dict[int, LayerPlan] = {}
    for path, layer in layers.walk(model):
        plans.setdefault(id(layer), _plan(path, layer, sparsity, trained))
    found = list(plans.values())
    if not any(plan.kernels for plan in found):
        weighty = [plan for plan in found if plan.layer.weights]
        reasons = "; ".join(f"{plan.path}: {plan.reason}" for plan in weighty) or "it has no weights"
        raise SqueezeflowError(
            "UNSUPPORTED_LAYER",
            f"no layer of the model can be pruned ({reasons[:600]}): give a model with dense or convolutional layers "
            "that are trainable",
            metadata={plan.path: plan.reason for plan in weighty[:50]},
        )
    return found


def _plan(path: str, layer: Any, sparsity: float, trained: set[int]) -> LayerPlan:
    name = type(layer).__name__
    reason = support.prune_reason(layer)
    if reason:
        return LayerPlan(path, name, layer, reason=reason)
    kernels = [operator.attrgetter(attribute)(layer) for attribute in support.PRUNED_KERNELS[name]]
    if any(id(kernel) not in trained for kernel in kernels):
        return LayerPlan(path, name, layer, reason=FROZEN)
    if str(layer.compute_dtype) == "float16":
        return LayerPlan(path, name, layer, reason=MIXED)
    smallest = min(kernel.shape.num_elements() for kernel in kernels)
    if round(smallest * (1 - sparsity)) < 1:
        reason = f"too few weights ({smallest}) to leave any at sparsity {sparsity:g}"
        return LayerPlan(path, name, layer, reason=reason)
    positions = [index for index, weight in enumerate(layer.weights) if any(weight is kernel for kernel in kernels)]
    return LayerPlan(path, name, layer, kernels=tuple(positions))


def pruned_kernels(model: Any, plans: Sequence[LayerPlan]) -> dict[str, np.ndarray]:
    """Gives the kernels that the plans prune, by the name of their layer, from any copy of the model."""
    found = dict(layers.walk(model))
    kernels: dict[str, np.ndarray] = {}
    for plan in plans:
        if plan.kernels:
            kernels |= plan.values(found[plan.path])
    return kernels


def positive_zeros(plans: Sequence[LayerPlan]) -> None:
    """Makes every −0.0 of the pruned kernels 0.0: a mask leaves the sign, which is a bit that deflate cannot remove.

    The model computes the same; seen on a small CNN at 80 %: 13 % fewer deflated bytes.
    """
    for plan in plans:
        for index in plan.kernels:
            weight = plan.layer.weights[index]
            weight.assign(weight + 0.0)
