"""The model that is trained: TFMOT's fake quantization around the chosen layers, and its end when it is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapper
from tf_keras.src.saving import serialization_lib

from squeezeflow.quantizer.annotate import annotate
from squeezeflow.quantizer.preserving import Keep, KeepingQuantizer, KeepingScheme
from squeezeflow.quantizer.quantized_layers import LayerPlan, folded
from squeezeflow.quantizer.ranges import set_kernel_ranges
from squeezeflow.v1 import technique_pb2


def wrap(model: Any, plans: Sequence[LayerPlan], params: technique_pb2.TrainQuantized) -> tf_keras.Model:
    """Gives a copy of a flat model with fake quantization in the layers that the plans quantize.

    Its inputs and outputs are those of the model, in order, as flat lists. Layers keep their names.
    """
    chosen = {plan.layer.name for plan in plans if plan.quantized}
    frozen = {plan.layer.name for plan in plans if plan.frozen}
    dense = folded(plans)
    annotated = annotate(model, chosen, folded=dense, frozen=frozen)
    keep = Keep(
        zeros=params.preserve_sparsity,
        clusters=params.preserve_clusters,
        sources={layer.name: layer.kernel.numpy() for layer in dense.values()},
    )
    # TFMOT makes a two-dimensional convolution of SeparableConv1D with lambdas of its own, and builds them from their
    # configuration. The model cannot bring any: code in a model is refused before it is loaded.
    own_lambdas = any(plan.quantized and plan.class_name == "SeparableConv1D" for plan in plans)
    with tfmot.quantization.keras.quantize_scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with serialization_lib.SafeModeScope(safe_mode=not own_lambdas):
            wrapped = tfmot.quantization.keras.quantize_apply(
                annotated, KeepingScheme(keep), quantized_layer_name_prefix=""
            )
    for layer in wrapped.layers:
        if isinstance(layer, QuantizeWrapper) and not layer.layer.trainable:
            _keep_frozen(layer)
    return wrapped


def finish(wrapped: tf_keras.Model) -> tf_keras.Model:
    """Makes a trained model ready for its conversion, in place."""
    for layer in wrapped.layers:
        for _, quantizer, _ in getattr(layer, "_weight_vars", ()):
            if isinstance(quantizer, KeepingQuantizer):
                quantizer.settle()
        inner = getattr(layer, "layer", None)
        if type(inner).__name__ == "Conv2D" and max(inner.dilation_rate) > 1:
            inner.convolution_op = partial(_dilated, inner)
    set_kernel_ranges(wrapped)
    return wrapped


def _keep_frozen(wrapper: Any) -> None:
    """Leaves the weights of a frozen layer alone: TFMOT's wrapper trains its kernel all the same."""
    wrapper._non_trainable_weights.extend(wrapper._trainable_weights)
    wrapper._trainable_weights.clear()


def _dilated(layer: Any, inputs: Any, kernel: Any) -> Any:
    """Convolves as Keras does, in one operator: Keras' three are not put together again around a quantized kernel.

    Not for training: TensorFlow has no gradient of it on every CPU.
    """
    strides, rates = list(layer.strides), list(layer.dilation_rate)
    form = "NHWC" if layer.data_format == "channels_last" else "NCHW"
    return tf.nn.conv2d(inputs, kernel, strides, layer.padding.upper(), form, rates)
