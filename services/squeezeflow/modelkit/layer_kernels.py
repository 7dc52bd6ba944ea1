"""Which weights of a Keras layer are its kernels: one table, by class, for every technique that changes kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Attributes that hold kernels, by class, from TFMOT's registries; `cell.` stands for the cell of a recurrent layer.
KERNELS: Mapping[str, tuple[str, ...]] = {
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
DONE = {"prune": "pruned", "cluster": "clustered"}


def without_kernels(layer: Any, technique: str, kernels: Mapping[str, tuple[str, ...]]) -> str:
    """Says why a layer has no kernel for a technique; empty where it has one.

    Args:
        technique: `prune` or `cluster`.
        kernels: the part of `KERNELS` that it works on.
    """
    name = type(layer).__name__
    if name in ("DepthwiseConv1D", "DepthwiseConv2D"):
        return f"depthwise kernels are not {DONE[technique]}: they have few weights, and each one matters"
    if not layer.weights:
        return "has no weights"
    if name not in kernels:
        return f"has no kernel that TFMOT {technique}s ({name})"
    return ""
