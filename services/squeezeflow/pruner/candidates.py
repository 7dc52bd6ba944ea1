"""The kernels of a model that a technique may change, layer by layer, and why the others stay as they are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import selection
from squeezeflow.modelkit.clusterable import CLUSTERED_KERNELS, cluster_reason
from squeezeflow.modelkit.layer_kernels import DONE, Kernel, Part, parts
from squeezeflow.modelkit.support import PRUNED_KERNELS, prune_reason
from squeezeflow.v1 import technique_pb2

FROZEN = "frozen (trainable is false): its weights stay as they are; save the model with it trainable to {} it"
SHARED = "lies in {}: a kernel that several layers hold is left as it is; give each a layer of its own"
_REASONS: Mapping[str, Callable[[Any], str]] = {"prune": prune_reason, "cluster": cluster_reason}
_KERNELS = {"prune": PRUNED_KERNELS, "cluster": CLUSTERED_KERNELS}
_ADVICE = {"prune": "choose other layers", "cluster": "ask for fewer clusters"}


@dataclass(frozen=True)
class Candidate:
    """A layer, or a part of one, and what a technique may change in it.

    Attributes:
        part: the layer.
        kernels: empty where nothing may be changed.
        reason: why not; empty where something may.
    """

    part: Part
    kernels: tuple[Kernel, ...] = ()
    reason: str = ""


def candidates(
    model: Any, technique: str, chosen: technique_pb2.LayerSelection, rules: Iterable[tuple[str, str]]
) -> list[Candidate]:
    """Looks at every layer of a tf_keras model, and at the layers and cells inside of wrappers.

    Args:
        technique: `prune` or `cluster`.
        chosen: the layers that the request names.
        rules: (field of the request, pattern): others that must name a layer.

    Errors: INVALID_PARAMETER for a pattern that names no layer.
    """
    found: dict[int, Part] = {}
    around: dict[int, dict[int, str]] = {}
    for part in parts(model):
        found.setdefault(id(part.layer), part)
        around.setdefault(id(part.layer), {})[id(part.outer)] = part.outer_path
    require_matches(chosen, rules, [name for part in found.values() for name in (*part.within, part.path)])
    trained = {id(weight) for weight in model.trainable_weights}
    result = []
    for part in found.values():
        reason = _REASONS[technique](part.layer) or selection.left_out(chosen, part.path, part.within)
        kernels = () if reason else part.kernels(_KERNELS[technique])
        if any(id(kernel.weight) not in trained for kernel in kernels):
            kernels, reason = (), FROZEN.format(technique)
        if kernels and len(around[id(part.layer)]) > 1:
            kernels, reason = (), SHARED.format(" and ".join(around[id(part.layer)].values()))
        result.append(Candidate(part, kernels, reason))
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
    found = {part.path: part.layer for part in parts(model)}
    kernels = ((found[plan.path], kernel) for plan in plans for kernel in plan.kernels)
    return {kernel.name: operator.attrgetter(kernel.attribute)(layer) for layer, kernel in kernels}
