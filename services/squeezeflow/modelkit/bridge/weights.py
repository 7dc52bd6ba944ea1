"""Weights of a Keras 3 layer into its tf_keras twin, matched by name and shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from squeezeflow.modelkit.bridge.refusal import refusal

# Name in tf_keras → name in Keras 3.
ALIASES = {"depthwise_kernel": ("depthwise_kernel", "kernel")}
# Counts the samples that `adapt` saw; older versions of Keras 3 have none, and outputs do not depend on it.
OPTIONAL = frozenset({"count"})


def copy_weights(layer: Any, twin: Any) -> None:
    """Copies all weights of a layer.

    A name counts from its end (`gru_cell/kernel`), since libraries differ in its beginning; among equals the order
    decides.

    Errors: UNSUPPORTED_LAYER where one has no counterpart.
    """
    left = list(layer.weights)
    values = []
    for weight in twin.weights:
        path = weight.name.split(":")[0].split("/")
        fits = [other for other in left if tuple(other.shape) == tuple(weight.shape)]
        best = max(fits, key=lambda other: _score(path, other.path.split("/")), default=None)
        if best is None or not _score(path, best.path.split("/")):
            if path[-1] not in OPTIONAL:
                raise refusal(layer, f"its weight {'/'.join(path)} {tuple(weight.shape)} is not found in the file")
            values.append(weight.numpy())
            continue
        left = [other for other in left if other is not best]
        values.append(np.asarray(best))
    if any(other.path.split("/")[-1] not in OPTIONAL for other in left):
        raise refusal(layer, f"tf_keras has no weight {left[0].path} in this layer")
    twin.set_weights(values)
    # Normalization computes with copies of its weights.
    if hasattr(twin, "finalize_state") and twin.weights:
        twin.finalize_state()


def _score(path: list[str], other: list[str]) -> int:
    """Gives how many parts at the end of two names are equal."""
    if other[-1] not in ALIASES.get(path[-1], (path[-1],)):
        return 0
    count = 1
    for one, two in zip(reversed(path[:-1]), reversed(other[:-1]), strict=False):
        if one != two:
            break
        count += 1
    return count
