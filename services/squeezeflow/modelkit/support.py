"""Which layers each technique takes, and why not: one table, that DescribeModel shows and the techniques follow.

Most of it was measured by converting, quantizing and pruning a model of each kind; the rest is TFMOT's own registry.
A reason is empty where the technique is applied.
"""

from __future__ import annotations

from typing import Any

from squeezeflow.modelkit import layer_kernels, unrolled

# TFMOT has no entry for the one that is left out (its PruneRegistry).
PRUNED_KERNELS = {name: kernels for name, kernels in layer_kernels.KERNELS.items() if name != "Conv1DTranspose"}
# Their kernels keep the outputs before the inputs.
OUTPUTS_FIRST = frozenset({"Conv2DTranspose", "Conv3DTranspose"})
_TEXT = frozenset({"StringLookup", "TextVectorization", "Hashing", "HashedCrossing"})
# Their loops were seen to kill the converter (SIGSEGV) while it calibrates.
_KILLS_CALIBRATION = frozenset({"GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"})
# Operators without an int16 kernel, by the layer or the activation that becomes them; found by quantizing one of each.
_WITHOUT_INT16 = {
    "Conv3D": "CONV_3D",
    "Conv3DTranspose": "CONV_3D_TRANSPOSE",
    "ELU": "ELU",
    "PReLU": "PRELU",
    "ThresholdedReLU": "GREATER",
    "UnitNormalization": "L2_NORMALIZATION",
    "LayerNormalization": "SQUARED_DIFFERENCE",
    "RMSNormalization": "SQUARE",
    "GroupNormalization": "SQUARE",
}
_ACTIVATIONS_WITHOUT_INT16 = {
    "elu": "ELU",
    "selu": "SELECT_V2",
    "softsign": "DIV",
    "hard_silu": "HARD_SWISH",
    "hard_swish": "HARD_SWISH",
}


def prune_reason(layer: Any) -> str:
    """Says why pruning leaves a layer as it is; empty where kernels of it, or inside of it, are pruned."""
    return layer_kernels.reason_of_parts(
        layer, lambda part: layer_kernels.without_kernels(part, "prune", PRUNED_KERNELS)
    )


def quantize_reason(layer: Any) -> str:
    """Says in which modes quantizing fails on a layer, and why, in one sentence; empty where every mode takes it."""
    unconvertible = convert_reason(layer)
    if unconvertible:
        return unconvertible
    inner = getattr(layer, "forward_layer", None) or getattr(layer, "layer", None) or layer
    name = type(inner).__name__
    looping = name in _KILLS_CALIBRATION or name == "LSTM"
    if looping and not getattr(inner, "unroll", False):
        obstacle = unrolled.reason(layer if hasattr(layer, "forward_layer") else inner)
        if obstacle and (name != "LSTM" or _is_keras3(inner)):
            return f"int8 and int16x8: calibrating the loop of {name} kills the converter; {obstacle}, or use dynamic"
        if obstacle:
            return f"int16x8: there is no int16 kernel for UNIDIRECTIONAL_SEQUENCE_LSTM; {obstacle}, or use int8"
    operator = _operator_without_int16(inner)
    if operator:
        return f"int16x8: there is no int16 kernel for {operator}, which {name} becomes; use int8"
    return ""


def _operator_without_int16(layer: Any) -> str:
    name = type(layer).__name__
    if name == "LayerNormalization" and _is_keras3(layer):
        return "NEG"
    if name == "Embedding" and _takes_float_ids(layer):
        return "CAST"
    if name in _WITHOUT_INT16:
        return _WITHOUT_INT16[name]
    activation = getattr(layer, "activation", None)
    return _ACTIVATIONS_WITHOUT_INT16.get(getattr(activation, "__name__", ""), "")


def _takes_float_ids(layer: Any) -> bool:
    try:
        dtype = layer.input.dtype
    except (AttributeError, ValueError):
        # Used in several places, or never called.
        return False
    return str(getattr(dtype, "name", dtype)).startswith("float")


def convert_reason(layer: Any) -> str:
    """Says why a layer does not convert to TFLite; empty where it does."""
    name = type(layer).__name__
    if name in _TEXT:
        return f"{name} takes text, and TFLite models take numbers"
    if layer.weights and _compute_dtype(layer) == "float16":
        return "computes in float16 (mixed precision), for which TFLite has no kernels; save the model in float32"
    return ""


def _compute_dtype(layer: Any) -> str:
    return str(getattr(layer, "compute_dtype", "") or "")


def _is_keras3(layer: Any) -> bool:
    return type(layer).__module__.split(".")[0] == "keras"
