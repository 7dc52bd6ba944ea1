"""Keeps training off a convolution kernel that corrupts memory.

oneDNN, which TensorFlow uses on CPU, computes the gradient of 1×1 kernels with strides above 1 beyond the ends of its
buffers (seen with tensorflow 2.21 on AVX2 and AVX-512, most shapes with few channels and 48 or more rows: SIGSEGV,
SIGABRT, a hang, or wrong weights without a word). A 1×1 kernel looks at every s-th pixel, so taking those first and
striding by 1 is the same convolution. Turning oneDNN off instead makes every epoch 1.6 to 1.8 times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import tensorflow as tf
import tf_keras


@contextmanager
def without_strides(model: tf_keras.Model) -> Iterator[None]:
    """Lets strided 1×1 convolutions of a model take their pixels first, as long as it lasts.

    Layers inside of wrappers and nested models are found too. What is saved or traced afterwards is as it was.
    """
    # Not `submodules`: it fails on a recurrent layer with dropout.
    strided = [layer for layer in model._flatten_layers() if _is_strided_pointwise(layer)]
    for layer in strided:
        layer.convolution_op = partial(_convolve, layer)
    try:
        yield
    finally:
        for layer in strided:
            del layer.convolution_op


def _is_strided_pointwise(layer: Any) -> bool:
    return (
        hasattr(layer, "convolution_op")
        and layer.data_format == "channels_last"
        and all(size == 1 for size in layer.kernel_size)
        and any(stride > 1 for stride in layer.strides)
    )


def _convolve(layer: Any, inputs: Any, kernel: Any) -> Any:
    steps = [slice(None, None, stride) for stride in layer.strides]
    return tf.nn.convolution(inputs[(slice(None), *steps)], kernel, strides=1, padding="VALID")
