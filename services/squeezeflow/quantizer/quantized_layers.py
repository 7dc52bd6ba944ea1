"""Which layers of a model are quantized while it is trained, decided before anything is wrapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeezeflow.core import invariants
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import layer_kernels, layers, selection
from squeezeflow.modelkit.clusterable import CLUSTERED_KERNELS
from squeezeflow.modelkit.quantizable import INPUT_REASON, KERNELS, NORMALIZATION, normalized_by, train_quantized_reason
from squeezeflow.modelkit.support import PRUNED_KERNELS
from squeezeflow.v1 import step_pb2, technique_pb2

FROZEN = "; frozen, so that training keeps its"


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer.

    Attributes:
        path: its name in the source, nested models' layers under the path of their model.
        class_name: its Keras class.
        layer: the layer, in the flat model.
        reason: why it stays float; empty where it is quantized.
        keeps: which of its zeros and clusters are kept, for a person.
    """

    path: str
    class_name: str
    layer: Any
    reason: str = ""
    keeps: tuple[str, ...] = ()

    @property
    def quantized(self) -> bool:
        """Whether it is quantized."""
        return not self.reason

    @property
    def left_float(self) -> bool:
        """Whether it computes in float; an input computes nothing."""
        return self.reason not in ("", INPUT_REASON)

    @property
    def frozen(self) -> bool:
        """Whether it is not trained, since only quantized kernels can be kept as they are."""
        return self.left_float and bool(self.keeps)

    @property
    def folds(self) -> bool:
        """Whether it is a BatchNormalization behind a dense layer, which only a fold before training makes integer."""
        return self.quantized and self.class_name in NORMALIZATION and _is_dense(normalized_by(self.layer))

    def outcome(self) -> step_pb2.LayerOutcome:
        """Tells it."""
        detail = ", ".join(["int8", *(f"{kept} kept" for kept in self.keeps)])
        if self.folds:
            detail = f"folded into {normalized_by(self.layer).name} before training"
        if not self.quantized:
            detail = f"{self.reason}{FROZEN} {' and '.join(self.keeps)}" if self.frozen else self.reason
        return step_pb2.LayerOutcome(layer=self.path, class_name=self.class_name, applied=self.quantized, detail=detail)


def plan_layers(model: Any, paths: Mapping[str, str], params: technique_pb2.TrainQuantized) -> list[LayerPlan]:
    """Decides for every layer of a flat tf_keras model.

    Args:
        paths: name of a layer → its path in the source.
        params: which layers the request takes, and what it keeps.

    Errors: INVALID_PARAMETER (a pattern that names no layer, integer inputs and outputs with layers left float, nothing
    to preserve), UNSUPPORTED_LAYER where no layer with a kernel is left, with the reason of each.
    """
    named = [(paths.get(layer.name, layer.name), layer) for layer in model.layers]
    selection.require_matches(selection.selection_patterns(params.layers), [path for path, _ in named])
    reasons = {
        id(layer): train_quantized_reason(layer) or selection.left_out(params.layers, path) for path, layer in named
    }
    outputs = {id(layers.origin(tensor)[0]) for tensor in model.outputs}
    for _, layer in named:
        if type(layer).__name__ in NORMALIZATION and not reasons[id(layer)]:
            before = normalized_by(layer)
            if id(before) in outputs:
                reasons[id(layer)] = f"cannot be folded into {before.name}, which gives an output of the model too"
            elif reasons[id(before)]:
                reasons[id(layer)] = f"follows {paths.get(before.name, before.name)}, which stays float"
    plans = [
        LayerPlan(path, type(layer).__name__, layer, reasons[id(layer)], _kept(layer, params)) for path, layer in named
    ]
    if not any(plan.quantized and plan.class_name in KERNELS for plan in plans):
        raise _nothing(plans)
    _require_integer(plans, params)
    _require_kept(model, params)
    return plans


def folded(plans: Sequence[LayerPlan]) -> dict[str, Any]:
    """Gives the BatchNormalization layers that are folded before training, by name, with the dense layers before."""
    return {plan.layer.name: normalized_by(plan.layer) for plan in plans if plan.folds}


def _is_dense(layer: Any) -> bool:
    return type(layer).__name__ == "Dense"


def _kernels(layer: Any, table: Mapping[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
    parts = layer_kernels.parts_of(layer, layer.name)
    return {kernel.name: np.asarray(kernel.weight) for part in parts for kernel in part.kernels(table)}


def _kept(layer: Any, params: technique_pb2.TrainQuantized) -> tuple[str, ...]:
    kept = []
    if params.preserve_sparsity:
        targets = invariants.sparsity_targets(_kernels(layer, PRUNED_KERNELS))
        kept += [f"zeros ({target.sparsity:.3f})" for target in targets]
    if params.preserve_clusters:
        found = invariants.cluster_targets(_kernels(layer, CLUSTERED_KERNELS))
        kept += [f"clusters ({target.number_of_clusters})" for target in found]
    return tuple(kept)


def _require_kept(model: Any, params: technique_pb2.TrainQuantized) -> None:
    for field, what, found, before in (
        ("preserve_sparsity", "zeros", lambda k: invariants.sparsity_targets(k), "prune"),
        ("preserve_clusters", "clusters", lambda k: invariants.cluster_targets(k), "cluster"),
    ):
        table = PRUNED_KERNELS if field == "preserve_sparsity" else CLUSTERED_KERNELS
        if getattr(params, field) and not any(found(_kernels(layer, table)) for layer in model.layers):
            message = f"{field}: no kernel of the model has {what} to preserve: {before} the model first"
            raise SqueezeflowError("INVALID_PARAMETER", message, fields=[(f"params.{field}", message)])


def _require_integer(plans: Sequence[LayerPlan], params: technique_pb2.TrainQuantized) -> None:
    left = [plan for plan in plans if plan.left_float]
    if not left or params.input_output == technique_pb2.TrainQuantized.INPUT_OUTPUT_FLOAT32:
        return
    named = "; ".join(f"{plan.path}: {plan.reason}" for plan in left)
    message = f"input_output: integer inputs and outputs need every layer quantized ({named[:600]}): use FLOAT32"
    raise SqueezeflowError("INVALID_PARAMETER", message, fields=[("params.input_output", message)])


def _nothing(plans: Sequence[LayerPlan]) -> SqueezeflowError:
    left = [plan for plan in plans if plan.left_float]
    reasons = "; ".join(f"{plan.path}: {plan.reason}" for plan in left) or "it has no weights"
    return SqueezeflowError(
        "UNSUPPORTED_LAYER",
        f"no layer with a kernel can be quantized in training ({reasons[:800]}): choose other layers, or quantize "
        "after training",
        metadata={plan.path: plan.reason for plan in left[:50]},
    )
