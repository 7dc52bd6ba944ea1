"""`keras.ops` in a Keras 3 graph → tf_keras.

A layer stands for an operation where there is one that computes the same, since techniques know layers: Rescaling for
a constant factor or summand, Add for a sum of equal shapes. Everything else becomes a call of a TensorFlow function,
of those that a scanned file may name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from squeezeflow.modelkit.bridge import activations, shapes
from squeezeflow.modelkit.bridge.call import Call, constant, is_symbolic
from squeezeflow.modelkit.bridge.refusal import refusal

layers = tf_keras.layers


def apply(operation: Any, args: Any, kwargs: Any, output: Any, unique: Callable[[str], str]) -> Any:
    """Applies the twin of an operation to tensors of tf_keras.

    Args:
        args, kwargs: what the operation was called with, its symbolic tensors replaced.
        output: the first symbolic result in Keras 3.
    Errors: UNSUPPORTED_LAYER naming the operation.
    """
    kind = type(operation).__name__
    if kind not in TABLE or not type(operation).__module__.startswith("keras.src.ops."):
        raise refusal(operation, "it is an operation that the bridge does not know: put a layer in its place")
    given = inspect.signature(type(operation).call).bind(operation, *args, **kwargs).arguments
    given = {name: value for name, value in given.items() if name != "self" and value is not None}
    return TABLE[kind](Call(operation, given, keras.backend.standardize_dtype(output.dtype), output.shape, unique))


def _unary(function: Any) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        (x,) = call.values()
        return call.function(function, call.cast(x, call.dtype))

    return run


def _layer(make: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """For an operation on one tensor, or on a list of tensors, that is a layer."""

    def run(call: Call) -> Any:
        (x,) = call.values()
        return make(call)([call.cast(one, call.dtype) for one in x] if isinstance(x, (list, tuple)) else x)

    return run


def _activation(name: str) -> Callable[[Call], Any]:
    return _layer(lambda call: layers.Activation(activations.SAME[name], **call.named))


def _built(name: str) -> Callable[[Call], Any]:
    return lambda call: activations.build(name, call.values()[0], call.name, call.unique)


def _arithmetic(function: Any, merge: Any = None) -> Callable[[Call], Any]:
    """For two operands: a Rescaling where one is constant, a merging layer where shapes are equal, else a function."""

    def run(call: Call) -> Any:
        one, two = call.values()
        affine = _affine(type(call.operation).__name__, one, two)
        x = one if is_symbolic(one) else two
        same = is_symbolic(x) and (x.dtype.name, tuple(x.shape)) == (call.dtype, tuple(call.shape))
        if affine is not None and same and call.dtype in ("float32", "float16"):
            return layers.Rescaling(*affine, **call.named)(x)
        one, two = call.cast(one, call.dtype), call.cast(two, call.dtype)
        if merge is not None and is_symbolic(one) and is_symbolic(two) and tuple(one.shape) == tuple(two.shape):
            return merge(**call.named)([one, two])
        return call.function(function, one, two)

    return run


def _affine(kind: str, one: Any, two: Any) -> tuple[Any, Any] | None:
    """Gives (scale, offset) where an operation with a constant is `x · scale + offset`."""
    if is_symbolic(one) and is_symbolic(two):
        return None
    value = np.asarray(constant(two if is_symbolic(one) else one, "float32"), dtype=np.float64)
    if kind == "Add":
        return 1.0, value.tolist()
    if kind == "Multiply":
        return value.tolist(), 0.0
    if kind == "Subtract":
        return (1.0, (-value).tolist()) if is_symbolic(one) else (-1.0, value.tolist())
    if kind in ("Divide", "TrueDivide") and is_symbolic(one) and np.all(value != 0):
        return (1.0 / value).tolist(), 0.0
    return None


def _compared(function: Any) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        one, two = call.values()
        kinds = [getattr(value, "dtype", type(value)) for value in (one, two)]
        kinds = [kind if isinstance(kind, type) else keras.backend.standardize_dtype(kind) for kind in kinds]
        both = keras.backend.result_type(*kinds)
        return call.function(function, call.cast(one, both), call.cast(two, both))

    return run


def _logical(function: Any) -> Callable[[Call], Any]:
    return lambda call: call.function(function, *[call.cast(value, "bool") for value in call.values()])


def _reduced(function: Any) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        x, axis = call.cast(call.given["x"], call.dtype), call.operation.axis
        axis = list(axis) if isinstance(axis, (list, tuple)) else axis
        return call.function(function, x, axis=axis, keepdims=bool(call.operation.keepdims))

    return run


def _index(function: Any) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        if call.operation.axis is None or call.operation.keepdims:
            raise refusal(call.operation, "give it one axis and no keepdims")
        return call.function(
            function, call.given["x"], axis=call.operation.axis, output_type=tf.dtypes.as_dtype(call.dtype).name
        )

    return run


def _where(call: Call) -> Any:
    if len(call.given) != 3:
        raise refusal(call.operation, "give it what to take where the condition holds, and where it does not")
    condition, one, two = call.values()
    return call.function(tf.where, condition, call.cast(one, call.dtype), call.cast(two, call.dtype))


def _clip(call: Call) -> Any:
    low, high = call.operation.x_min, call.operation.x_max
    x = call.cast(call.given["x"], call.dtype)
    return call.function(tf.clip_by_value, x, constant(low, call.dtype), constant(high, call.dtype))


def _matmul(call: Call) -> Any:
    one, two = call.values()
    if min(np.ndim(value) if not is_symbolic(value) else len(value.shape) for value in (one, two)) < 2:
        raise refusal(call.operation, "give it matrices, not vectors")
    return call.function(tf.matmul, call.cast(one, call.dtype), call.cast(two, call.dtype))


def _gelu(call: Call) -> Any:
    if call.operation.approximate:
        return call.function(tf.nn.gelu, call.given["x"], approximate=True)
    return layers.Activation("gelu", **call.named)(call.given["x"])


def _of(function: Any, *attributes: str, **renamed: str) -> Callable[[Call], Any]:
    """For a function of one tensor or list whose settings are the operation's.

    Args:
        attributes: settings of the same name in both.
        renamed: name in TensorFlow → name of the setting.
    """

    def run(call: Call) -> Any:
        names = {name: name for name in attributes} | renamed
        settings = {name: getattr(call.operation, attribute) for name, attribute in names.items()}
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        return call.function(function, *call.values(), **settings)

    return run


_BINARY = {
    "Add": (tf.add, layers.Add),
    "Subtract": (tf.subtract, layers.Subtract),
    "Multiply": (tf.multiply, layers.Multiply),
    "Maximum": (tf.maximum, layers.Maximum),
    "Minimum": (tf.minimum, layers.Minimum),
    **dict.fromkeys(["Divide", "TrueDivide"], (tf.math.divide, None)),
    "FloorDivide": (tf.math.floordiv, None),
    "Mod": (tf.math.floormod, None),
    "Power": (tf.pow, None),
    "DivideNoNan": (tf.math.divide_no_nan, None),
}
_UNARY = {
    "Absolute": tf.abs,
    "Exp": tf.exp,
    "Expm1": tf.math.expm1,
    "Log": tf.math.log,
    "Log1p": tf.math.log1p,
    "Sqrt": tf.sqrt,
    "Rsqrt": tf.math.rsqrt,
    "Square": tf.square,
    "Reciprocal": tf.math.reciprocal,
    "Sin": tf.sin,
    "Cos": tf.cos,
    "Tan": tf.tan,
    "Sign": tf.sign,
    "Floor": tf.floor,
    "Ceil": tf.math.ceil,
    "Round": tf.round,
    "Erf": tf.math.erf,
    "StopGradient": tf.stop_gradient,
    "ZerosLike": tf.zeros_like,
    "OnesLike": tf.ones_like,
}
_COMPARISONS = {
    "Greater": tf.greater,
    "GreaterEqual": tf.greater_equal,
    "Less": tf.less,
    "LessEqual": tf.less_equal,
    "Equal": tf.equal,
    "NotEqual": tf.not_equal,
}
_LOGIC = {"LogicalAnd": tf.math.logical_and, "LogicalOr": tf.math.logical_or, "LogicalNot": tf.math.logical_not}
_REDUCTIONS = {
    "Mean": tf.reduce_mean,
    "Sum": tf.reduce_sum,
    "Prod": tf.reduce_prod,
    "Logsumexp": tf.reduce_logsumexp,
    **dict.fromkeys(["Max", "Amax"], tf.reduce_max),
    **dict.fromkeys(["Min", "Amin"], tf.reduce_min),
    "Var": tf.math.reduce_variance,
    "Std": tf.math.reduce_std,
    "Any": tf.reduce_any,
    "All": tf.reduce_all,
}
_ACTIVATIONS = {
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Silu": "silu",
    "Selu": "selu",
}

TABLE: Mapping[str, Callable[[Call], Any]] = {
    **{kind: _arithmetic(function, merge) for kind, (function, merge) in _BINARY.items()},
    **{kind: _unary(function) for kind, function in _UNARY.items()},
    **{kind: _compared(function) for kind, function in _COMPARISONS.items()},
    **{kind: _logical(function) for kind, function in _LOGIC.items()},
    **{kind: _reduced(function) for kind, function in _REDUCTIONS.items()},
    **{kind: _activation(name) for kind, name in _ACTIVATIONS.items()},
    "Argmax": _index(tf.argmax),
    "Argmin": _index(tf.argmin),
    "Relu": _layer(lambda call: layers.ReLU(**call.named)),
    "Relu6": _layer(lambda call: layers.ReLU(6.0, **call.named)),
    "LeakyRelu": _layer(lambda call: layers.LeakyReLU(call.operation.negative_slope, **call.named)),
    "Elu": _layer(lambda call: layers.ELU(call.operation.alpha, **call.named)),
    "Softmax": _layer(lambda call: layers.Softmax(call.operation.axis, **call.named)),
    "LogSoftmax": _of(tf.nn.log_softmax, "axis"),
    "Gelu": _gelu,
    "HardSigmoid": _built("hard_sigmoid"),
    "HardSilu": _built("hard_silu"),
    "HardTanh": _built("hard_tanh"),
    "LogSigmoid": _built("log_sigmoid"),
    "Negative": _layer(lambda call: layers.Rescaling(-1.0, **call.named)),
    "Concatenate": _layer(lambda call: layers.Concatenate(call.operation.axis, **call.named)),
    "Stack": lambda call: call.function(
        tf.stack, [call.cast(x, call.dtype) for x in call.values()[0]], axis=call.operation.axis
    ),
    "Reshape": shapes.reshape,
    "Transpose": shapes.transpose,
    "Swapaxes": shapes.transpose,
    "ExpandDims": _of(tf.expand_dims, "axis"),
    "Squeeze": _of(tf.squeeze, "axis"),
    "Repeat": _of(tf.repeat, "repeats", "axis"),
    "Tile": _of(tf.tile, multiples="repeats"),
    "BroadcastTo": _of(tf.broadcast_to, "shape"),
    "Cumsum": _of(tf.cumsum, "axis"),
    "Flip": lambda call: call.function(tf.reverse, call.given["x"], np.atleast_1d(call.operation.axis).tolist()),
    "Take": lambda call: call.function(
        tf.gather, call.given["x"], call.cast(call.given["indices"], "int32"), axis=call.operation.axis
    ),
    "Cast": lambda call: call.function(tf.cast, call.given["x"], call.dtype),
    "GetItem": shapes.getitem,
    "Where": _where,
    "Clip": _clip,
    "Split": shapes.split,
    "Pad": shapes.pad,
    "Matmul": _matmul,
}
