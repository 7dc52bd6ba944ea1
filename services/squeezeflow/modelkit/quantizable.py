"""Which layers quantization-aware training takes, and why it leaves the others float.

TFMOT's registry and what goes by the same rules, without what was seen to stay float in the file all the same (a model
of each kind was trained and converted). Read from class names and configurations alone, for layers of both Keras
libraries: DescribeModel shows it where no TFMOT is installed.
"""

from __future__ import annotations

from typing import Any

from squeezeflow.modelkit import layers

# Layers with a kernel that TFMOT quantizes, and the attributes that hold one.
KERNELS = {
    "Conv2D": ("kernel",),
    "Conv2DTranspose": ("kernel",),
    "DepthwiseConv2D": ("depthwise_kernel",),
    "Dense": ("kernel",),
    "SeparableConv1D": ("depthwise_kernel", "pointwise_kernel"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel"),
}
WITHOUT_KERNEL = frozenset(
    {
        *("ReLU", "LeakyReLU", "Softmax", "Flatten", "Permute", "Reshape", "UpSampling2D"),
        *("Add", "Subtract", "Multiply", "Maximum", "Concatenate"),
        *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "ActivityRegularization"),
        *("Cropping1D", "Cropping2D", "Cropping3D", "ZeroPadding1D", "ZeroPadding2D", "MaxPooling2D"),
        *("AveragePooling1D", "AveragePooling2D", "GlobalAveragePooling1D", "GlobalAveragePooling2D"),
        *("GlobalAveragePooling3D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"),
    }
)
NORMALIZATION = frozenset({"BatchNormalization", "SyncBatchNormalization"})
# What a BatchNormalization is folded into.
FOLDED_INTO = frozenset({"Conv2D", "DepthwiseConv2D", "Dense", "SeparableConv1D", "SeparableConv2D"})
ACTIVATIONS = frozenset({"linear", "relu", "relu6", "swish", "silu", "gelu", "sigmoid", "softmax", "tanh"})
INPUT_REASON = "an input: quantized where a quantized layer takes it"


def train_quantized_reason(layer: Any) -> str:
    """Says why quantization-aware training leaves a layer float; empty where it is quantized."""
    name = type(layer).__name__
    if name == "InputLayer":
        return INPUT_REASON
    if "float16" in str(getattr(layer, "compute_dtype", "") or ""):
        return "computes in 16 bits (mixed precision), which TFMOT cannot quantize; save the model in float32"
    if name in NORMALIZATION:
        return _normalization_reason(layer)
    if name not in KERNELS and name not in WITHOUT_KERNEL and name != "Activation":
        return f"TFMOT has no fake quantization for {name}"
    if _takes_integers(layer):
        return "takes integers, which need no quantization"
    activation = layers.activation(layer)
    if (name in KERNELS or name == "Activation") and activation not in ACTIVATIONS:
        return f"TFMOT has no fake quantization for the activation {activation or 'of its own'}"
    return _stays_float(layer)


def _stays_float(layer: Any) -> str:
    """Says why a layer that TFMOT takes would be float in the file all the same; empty where it would not."""
    name = type(layer).__name__
    if name == "Dense" and any(len(tensor.shape) > 2 for tensor in _inputs(layer)):
        return "a dense layer over more than one axis: TFLite reshapes before its bias, which TFMOT does not quantize"
    if name == "ReLU" and not _in_tflite(layer):
        return "TFLite has no ReLU with this maximum or threshold"
    if name == "SeparableConv1D" and layer.padding == "causal":
        return "TFMOT has no fake quantization for causal padding of SeparableConv1D"
    rates = getattr(layer, "dilation_rate", 1)
    dilated = max(rates) > 1 if isinstance(rates, (list, tuple)) else rates > 1
    return f"TFLite leaves a dilated {name} float" if dilated and name in KERNELS and name != "Conv2D" else ""


def _in_tflite(relu: Any) -> bool:
    limit, slope = relu.max_value, float(relu.negative_slope or 0)
    return not float(relu.threshold or 0) and (limit is None or (float(limit) == 6 and not slope))


def normalized_by(layer: Any) -> Any:
    """Gives the layer that a BatchNormalization can be folded into; None where there is none.

    That is the layer right before it, with no activation between and nothing else that uses its output.
    """
    given = _inputs(layer)
    before = layers.origin(given[0])[0] if len(given) == 1 else None
    if before is None or type(before).__name__ not in FOLDED_INTO or layers.activation(before) != "linear":
        return None
    # A model's own outputs are no use that a layer knows of: a technique looks at them.
    return before if len(before._inbound_nodes) == len(before._outbound_nodes) == 1 else None


def _normalization_reason(layer: Any) -> str:
    if normalized_by(layer) is not None:
        return ""
    kinds = "a convolution or a dense layer without an activation, used by nothing else"
    return f"TFMOT quantizes {type(layer).__name__} only right after {kinds}"


def _takes_integers(layer: Any) -> bool:
    return any("float" not in str(getattr(tensor.dtype, "name", tensor.dtype)) for tensor in _inputs(layer))


def _inputs(layer: Any) -> list[Any]:
    """Gives the symbolic inputs of a layer; none where it is used several times."""
    try:
        given = layer.input
    except (AttributeError, ValueError):
        return []
    if isinstance(given, dict):
        return list(given.values())
    return list(given) if isinstance(given, (list, tuple)) else [given]
