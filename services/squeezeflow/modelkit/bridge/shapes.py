"""Operations of Keras 3 that only move values."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda

from squeezeflow.modelkit.bridge.call import Call, constant, is_symbolic
from squeezeflow.modelkit.bridge.refusal import refusal

layers = tf_keras.layers


def reshape(call: Call) -> Any:
    """A Reshape where the batch axis is left alone."""
    x, wanted = call.given["x"], [-1 if size is None else int(size) for size in call.operation.newshape]
    inner, known = wanted[1:], list(x.shape[1:])
    same = None not in known and -1 not in inner and int(np.prod(inner)) == int(np.prod(known))
    if wanted and (wanted[0] == -1 or wanted[0] == x.shape[0]) and same:
        return layers.Reshape(inner, **call.named)(x)
    return call.function(tf.reshape, x, wanted)


def transpose(call: Call) -> Any:
    """A Permute where the batch axis is left alone."""
    x = call.given["x"]
    axes = list(getattr(call.operation, "axes", None) or reversed(range(len(x.shape))))
    if type(call.operation).__name__ == "Swapaxes":
        axes = list(range(len(x.shape)))
        one, two = call.operation.axis1, call.operation.axis2
        axes[one], axes[two] = axes[two], axes[one]
    axes = [axis % len(axes) for axis in axes]
    return layers.Permute(axes[1:], **call.named)(x) if axes[0] == 0 else call.function(tf.transpose, x, axes)


def getitem(call: Call) -> Any:
    """Numbers, slices, `...` and new axes."""
    x, key = call.values()
    parts = list(key) if isinstance(key, (list, tuple)) else [key]
    if any(is_symbolic(part) or not isinstance(part, (int, slice, type(None), type(...))) for part in parts):
        raise refusal(call.operation, "index it with numbers and slices")
    if ... in parts:
        at = parts.index(...)
        missing = len(x.shape) - sum(part is not None for part in parts) + 1
        parts[at : at + 1] = [slice(None)] * missing
    # What tf_keras itself writes for a slice.
    named = [
        {"start": part.start, "stop": part.stop, "step": part.step} if isinstance(part, slice) else part
        for part in parts
    ]
    return SlicingOpLambda(tf.__operators__.getitem, name=call.name)(x, tuple(named))


def split(call: Call) -> Any:
    """By a number of parts, or at indices."""
    sections = call.operation.indices_or_sections
    x, axis = call.given["x"], call.operation.axis
    if not isinstance(sections, int):
        if x.shape[axis] is None:
            raise refusal(call.operation, "the axis that it splits has no fixed size")
        ends = [0, *[int(index) for index in sections], int(x.shape[axis])]
        sections = [end - begin for begin, end in pairwise(ends)]
    return call.function(tf.split, x, sections, axis=axis)


def pad(call: Call) -> Any:
    """With a constant, or by reflection."""
    widths = [[int(before), int(after)] for before, after in call.operation.pad_width]
    value = call.given.get("constant_values", 0)
    return call.function(
        tf.pad, call.given["x"], widths, mode=call.operation.mode.upper(), constant_values=constant(value, call.dtype)
    )
