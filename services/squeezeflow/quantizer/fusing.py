"""Where fake quantization stands by an activation of its own: behind it, as the file has both in one operator.

TFMOT takes a convolution or dense layer before a separate ReLU for one without weights: they are trained and converted
as if they were float, without a word, and neither zeros nor clusters are kept. Its other silent loss is that a layer
that feeds a Concatenate gets the plain quantizer, whatever the scheme says. Both are put right after TFMOT has laid out
the model, when every layer has its final neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_configs as configs,
)
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_layout_transform as layout,
)

from squeezeflow.modelkit import layers
from squeezeflow.modelkit.quantizable import KERNELS, NORMALIZATION

# Activations that TFLite computes in the operator before them.
FUSED = frozenset({"relu", "relu6"})


def fuses(layer: Any) -> bool:
    """Whether TFLite computes this activation layer in the operator before it."""
    if isinstance(layer, tf_keras.layers.Activation):
        return getattr(layer.activation, "__name__", "") in FUSED
    if not isinstance(layer, tf_keras.layers.ReLU):
        return False
    limit = None if layer.max_value is None else float(layer.max_value)
    return limit in (None, 6.0) and float(layer.negative_slope or 0) == 0 and float(layer.threshold or 0) == 0


def takes_activations(layer: Any) -> bool:
    """Whether TFLite has an operator for this layer that computes an activation too.

    That of a transposed convolution gets one together with its bias, and is float where there is none to add.
    """
    if type(layer).__name__ != "Conv2DTranspose":
        return True
    return bool(layer.use_bias and np.any(layer.bias))


def only_user(model: Any, layer: Any) -> Any:
    """Gives the layer that alone takes what a layer gives; None where there are several, or it is an output."""
    nodes = layer._outbound_nodes
    if len(layer._inbound_nodes) != 1 or len(nodes) != 1:
        return None
    if any(layers.origin(tensor)[0] is layer for tensor in model.outputs):
        return None
    return nodes[0].outbound_layer


class FusedLayout(layout.Default8BitQuantizeLayoutTransform):
    """TFMOT's layout of a model, with fake quantization behind activations that are fused, and on every kernel.

    Args:
        registry: gives the quantization of a layer with a kernel.
    """

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Gives the laid-out model, and for its layers by name how each is quantized."""
        laid, chosen = super().apply(model, layer_quantize_map)
        for layer in laid.layers:
            if layer.name not in chosen:
                continue
            user = only_user(laid, layer)
            fused = user is not None and user.name in chosen and fuses(user) and takes_activations(layer)
            entry, name = chosen[layer.name], type(layer).__name__
            if name in KERNELS:
                config = self._registry.get_quantize_config(layer)
                if fused and layers.activation(layer) == "linear":
                    config.activation_attrs = []
                entry["quantize_config"] = config
            elif name in NORMALIZATION:
                entry["quantize_config"] = (
                    configs.NoOpQuantizeConfig() if fused else configs.Default8BitOutputQuantizeConfig()
                )
            elif name == "Add" and not fused:
                entry["quantize_config"] = None
        return laid, chosen
