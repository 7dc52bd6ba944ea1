"""Activations of Keras 3: the name that tf_keras has for one, or layers that compute it.

tf_keras calls something else `hard_sigmoid` (slope 0.2 instead of 1/6). The converter makes one HARD_SWISH of the
layers that stand for `hard_silu`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

# Name in Keras 3 → name in tf_keras; the values are the same.
SAME = {
    **{
        name: name
        for name in (
            *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "mish", "swish"),
            *("sigmoid", "tanh", "softmax", "log_softmax", "softplus", "softsign", "exponential"),
        )
    },
    "silu": "swish",
    # Its one parameter is not part of a name.
    "celu": "elu",
}
BUILT = frozenset({"hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "log_sigmoid"})


def build(activation: str, x: Any, name: str, unique: Callable[[str], str]) -> Any:
    """Applies one of `BUILT` to a symbolic tensor; the last layer is called `name`.

    Args:
        unique: makes names of further layers unique.
    """
    layers = tf_keras.layers
    if activation == "hard_tanh":
        return TFOpLambda(tf.clip_by_value, name=name)(x, -1.0, 1.0)
    if activation == "log_sigmoid":
        return TFOpLambda(tf.math.log_sigmoid, name=name)(x)
    gate = activation == "hard_sigmoid"
    dtype = x.dtype.name
    y = layers.Rescaling(1.0, 3.0, name=unique(f"{name}_add"), dtype=dtype)(x)
    y = layers.ReLU(6.0, name=unique(f"{name}_relu6"), dtype=dtype)(y)
    y = layers.Rescaling(1 / 6, name=name if gate else unique(f"{name}_scale"), dtype=dtype)(y)
    return y if gate else layers.Multiply(name=name, dtype=dtype)([x, y])
