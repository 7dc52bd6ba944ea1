"""Which layers weight clustering takes, and why not: kernels by class, from TFMOT's registry and what was measured."""

from __future__ import annotations

from typing import Any

from squeezeflow.modelkit import layer_kernels

CLUSTERED_KERNELS = layer_kernels.KERNELS
# Every output channel can have centroids of its own.
PER_CHANNEL = frozenset({"Conv2D"})


def cluster_reason(layer: Any) -> str:
    """Says why clustering leaves a layer as it is; empty where kernels of it, or inside of it, are clustered."""
    return layer_kernels.reason_of_parts(layer, _reason)


def _reason(layer: Any) -> str:
    reason = layer_kernels.without_kernels(layer, "cluster", CLUSTERED_KERNELS)
    if not reason and str(getattr(layer, "compute_dtype", "") or "") == "float16":
        return "computes in float16 (mixed precision), which TFMOT cannot cluster; save the model in float32"
    return reason
