"""Which layers weight clustering takes, and why not: kernels by class, from TFMOT's registry and what was measured."""

from __future__ import annotations

from typing import Any

# Kernels that are clustered, by class; `cell.` stands for the cell of a recurrent layer.
CLUSTERED_KERNELS = {
    **dict.fromkeys(["Conv1D", "Conv2D", "Conv3D", "Dense"], ("kernel",)),
    **dict.fromkeys(["Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"], ("kernel",)),
    **dict.fromkeys(["LocallyConnected1D", "LocallyConnected2D"], ("kernel",)),
    **dict.fromkeys(["SeparableConv1D", "SeparableConv2D"], ("pointwise_kernel",)),
    "Embedding": ("embeddings",),
    "MultiHeadAttention": (
        "_query_dense.kernel",
        "_key_dense.kernel",
        "_value_dense.kernel",
        "_output_dense.kernel",
    ),
    **dict.fromkeys(["LSTM", "GRU", "SimpleRNN"], ("cell.kernel", "cell.recurrent_kernel")),
}
# Every output channel can have centroids of its own.
PER_CHANNEL = frozenset({"Conv2D"})


def cluster_reason(layer: Any) -> str:
    """Says why clustering leaves a layer as it is; empty where its kernels are clustered."""
    name = type(layer).__name__
    if name in ("DepthwiseConv1D", "DepthwiseConv2D"):
        return "depthwise kernels are not clustered: they have few weights, and sharing them costs much accuracy"
    if not layer.weights:
        return "has no weights"
    if name not in CLUSTERED_KERNELS:
        return f"has no kernel that TFMOT clusters ({name})"
    if str(getattr(layer, "compute_dtype", "") or "") == "float16":
        return "computes in float16 (mixed precision), which TFMOT cannot cluster; save the model in float32"
    return ""
