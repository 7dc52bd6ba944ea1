"""The kernels of a model that a technique may change, layer by layer, and why the others stay as they are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import layers, selection
from squeezeflow.modelkit.clusterable import CLUSTERED_KERNELS, cluster_reason
from squeezeflow.modelkit.layer_kernels import DONE
from squeezeflow.modelkit.support import PRUNED_KERNELS, prune_reason
from squeezeflow.v1 import technique_pb2

FROZEN = "frozen (trainable is false): its weights stay as they are; save the model with it trainable to {} it"
_REASONS: Mapping[str, Callable[[Any], str]] = {"prune": prune_reason, "cluster": cluster_reason}
_KERNELS = {"prune": PRUNED_KERNELS, "cluster": CLUSTERED_KERNELS}
_ADVICE = {"prune": "choose other layers", "cluster": "ask for fewer clusters"}


@dataclass(frozen=True)
class Kernel:
    """A kernel of a layer.

    Attributes:
        name: of the layer, with that of the weight where the layer has several kernels.
        attribute: where the layer keeps it.
        weight: the variable; of a SavedModel, its values.
    """

    name: str
    attribute: str
    weight: Any


@dataclass(frozen=True)
class Candidate:
    """A layer, and what a technique may change in it.

    Attributes:
        path: its name, nested models' layers under the path of their model.
        layer: the layer.
        kernels: empty where nothing may be changed.
        reason: why not; empty where something may.
    """

    path: str
    layer: Any
    kernels: tuple[Kernel, ...] = ()
    reason: str = ""


def candidates(
    model: Any, technique: str, chosen: technique_pb2.LayerSelection, rules: Iterable[tuple[str, str]]
) -> list[Candidate]:
    """Looks at every layer of a tf_keras model.

    Args:
        technique: `prune` or `cluster`.
        chosen: the layers that the request names.
        rules: (field of the request, pattern): others that must name a layer.

    Errors: INVALID_PARAMETER for a pattern that names no layer.
    """
    found: dict[int, tuple[str, Any]] = {}
    for path, layer in layers.walk(model):
        found.setdefault(id(layer), (path, layer))
    require_matches(chosen, rules, [path for path, _ in found.values()])
    trained = {id(weight) for weight in model.trainable_weights}
    result = []
    for path, layer in found.values():
        reason = _REASONS[technique](layer) or selection.left_out(chosen, path)
        kernels = () if reason else _kernels(path, layer, _KERNELS[technique][type(layer).__name__])
        if any(id(kernel.weight) not in trained for kernel in kernels):
            kernels, reason = (), FROZEN.format(technique)
        result.append(Candidate(path, layer, kernels, reason))
    return result


def require_matches(
    chosen: technique_pb2.LayerSelection, rules: Iterable[tuple[str, str]], names: Sequence[str]
) -> None:
    """Refuses patterns that name nothing: INVALID_PARAMETER."""
    selection.require_matches([*selection.selection_patterns(chosen), *rules], names)


def refuse_all(reasons: Mapping[str, str], technique: str, what: str = "layer") -> None:
    """Refuses a model of which nothing can be changed: UNSUPPORTED_LAYER with the reasons by name."""
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "it has no weights"
    raise SqueezeflowError(
        "UNSUPPORTED_LAYER",
        f"no {what} of the model can be {DONE[technique]} ({told[:600]}): give a model with dense or convolutional "
        f"layers that are trainable, or {_ADVICE[technique]}",
        metadata=dict(list(reasons.items())[:50]),
    )


def weights_of(model: Any, plans: Iterable[Any]) -> dict[str, Any]:
    """Gives the variables of the kernels that plans change, by name, from any copy of the model.

    Args:
        plans: each with the `path` of a layer and its `kernels`, which have a `name` and an `attribute`.
    """
    found = dict(layers.walk(model))
    return {
        kernel.name: operator.attrgetter(kernel.attribute)(found[plan.path])
        for plan in plans
        for kernel in plan.kernels
    }


def _kernels(path: str, layer: Any, attributes: Sequence[str]) -> tuple[Kernel, ...]:
    weights = [operator.attrgetter(attribute)(layer) for attribute in attributes]
    names = [path] if len(weights) == 1 else [f"{path}/{_tail(layer, attribute)}" for attribute in attributes]
    return tuple(Kernel(*kernel) for kernel in zip(names, attributes, weights, strict=True))


def _tail(layer: Any, attribute: str) -> str:
    """Gives `lstm_cell/kernel` for `cell.kernel`."""
    owner, _, name = attribute.rpartition(".")
    return f"{operator.attrgetter(owner)(layer).name}/{name}" if owner else name
