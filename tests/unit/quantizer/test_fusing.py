"""Where fake quantization stands: on every chosen kernel, behind what is fused, between what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests import models  # sets the environment that tf_keras needs

from squeezeflow.quantizer.annotate import annotate, fold
from squeezeflow.quantizer.fusing import fuses
from squeezeflow.quantizer.quantized_layers import LayerPlan, plan_layers
from squeezeflow.quantizer.wrapping import wrap
from squeezeflow.v1 import technique_pb2

assert models.CLASSES
REQUEST = technique_pb2.TrainQuantized()
Build = Callable[[Any, Any], Any]


def built(build: Build, shape: tuple[int, ...] = (8, 8, 2)) -> Any:
    """Gives the model that `build(layers, input)` makes."""
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    inputs = tf_keras.Input(shape, name="image")
    return tf_keras.Model(inputs, build(tf_keras.layers, inputs))


def wrapped(build: Build) -> Any:
    model = built(build)
    return wrap(model, plan_layers(model, {}, REQUEST), REQUEST)


def quantized(model: Any, name: str) -> tuple[int, int, int]:
    """Gives how many kernels, activations and outputs of a layer are fake-quantized."""
    layer = model.get_layer(name)
    activations = [activation for activation in layer._quantize_activations if activation._should_post_quantize()]
    return len(layer._weight_vars), len(activations), len(layer._output_quantizers)


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (lambda layers: layers.ReLU(), True),
        (lambda layers: layers.ReLU(6.0), True),
        (lambda layers: layers.Activation("relu"), True),
        (lambda layers: layers.Activation("relu6"), True),
        (lambda layers: layers.ReLU(3.0), False),
        (lambda layers: layers.ReLU(negative_slope=0.1), False),
        (lambda layers: layers.ReLU(threshold=0.5), False),
        (lambda layers: layers.LeakyReLU(), False),
        (lambda layers: layers.Activation("tanh"), False),
    ],
)
def test_only_a_plain_relu_is_fused(make: Callable[[Any], Any], fused: bool) -> None:
    import tf_keras

    assert fuses(make(tf_keras.layers)) is fused


@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D", "Dense"])
def test_a_kernel_before_a_relu_of_its_own_is_quantized(kind: str) -> None:
    def build(layers: Any, x: Any) -> Any:
        made = {
            "Conv2D": lambda: layers.Conv2D(3, 3, name="kernel"),
            "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(3, name="kernel"),
            "Dense": lambda: layers.Dense(3, name="kernel"),
        }[kind]()
        return layers.ReLU(name="relu")(made(layers.Flatten()(x) if kind == "Dense" else x))

    model = wrapped(build)
    assert quantized(model, "kernel") == (1, 0, 0)
    assert quantized(model, "relu") == (0, 0, 1)


def test_what_is_not_fused_is_quantized_before_and_behind() -> None:
    model = wrapped(lambda layers, x: layers.LeakyReLU(name="leaky")(layers.Conv2D(3, 3, name="conv")(x)))
    assert quantized(model, "conv") == (1, 1, 0)
    assert quantized(model, "leaky") == (0, 0, 1)


def test_a_normalization_before_a_sloped_relu_is_quantized_behind() -> None:
    def build(layers: Any, x: Any) -> Any:
        x = layers.BatchNormalization(name="norm")(layers.Conv2D(3, 3, name="conv")(x))
        return layers.ReLU(negative_slope=0.2, name="relu")(x)

    assert quantized(wrapped(build), "norm") == (0, 0, 1)


def test_a_layer_that_is_used_twice_is_quantized_behind() -> None:
    def build(layers: Any, x: Any) -> Any:
        x = layers.Conv2D(3, 3, name="conv")(x)
        return layers.Add(name="sum")([x, layers.ReLU(name="relu")(x)])

    assert quantized(wrapped(build), "conv") == (1, 1, 0)


def test_a_layer_that_gives_an_output_is_quantized_behind() -> None:
    def build(layers: Any, x: Any) -> Any:
        x = layers.Conv2D(3, 3, name="conv")(x)
        return [x, layers.ReLU(name="relu")(x)]

    assert quantized(wrapped(build), "conv") == (1, 1, 0)


def test_a_normalization_of_an_output_is_left_float() -> None:
    def build(layers: Any, x: Any) -> Any:
        x = layers.Conv2D(3, 3, name="conv")(x)
        return [x, layers.BatchNormalization(name="norm")(x)]

    plans = {plan.path: plan for plan in plan_layers(built(build), {}, REQUEST)}
    assert plans["conv"].quantized
    assert "gives an output of the model too" in plans["norm"].reason


def test_a_normalization_stays_float_with_the_layer_before_it() -> None:
    model = built(
        lambda layers, x: layers.Conv2D(3, 3, name="conv_2")(
            layers.BatchNormalization(name="norm")(layers.Conv2D(3, 3, name="conv")(x))
        )
    )
    request = technique_pb2.TrainQuantized(layers=technique_pb2.LayerSelection(exclude=["conv"]))
    plans: dict[str, LayerPlan] = {plan.path: plan for plan in plan_layers(model, {}, request)}
    assert plans["norm"].reason == "follows conv, which stays float"


def test_a_transposed_convolution_without_a_bias_is_quantized_before_its_relu() -> None:
    model = wrapped(
        lambda layers, x: layers.Conv2DTranspose(3, 3, use_bias=False, activation="relu", name="transposed")(x)
    )
    assert quantized(model, "transposed") == (1, 1, 0)
    assert quantized(model, "transposed_relu") == (0, 0, 1)


def test_a_concatenation_is_quantized_once_for_all_its_parts() -> None:
    def build(layers: Any, x: Any) -> Any:
        parts = [layers.Conv2D(3, 3, activation="relu", name=name)(x) for name in ("left", "right")]
        return layers.Concatenate(name="both")(parts)

    model = wrapped(build)
    assert quantized(model, "left")[0] == quantized(model, "right")[0] == 1
    assert quantized(model, "both") == (0, 0, 1)


def test_dense_and_normalization_are_one_dense_layer() -> None:
    model = built(
        lambda layers, x: layers.BatchNormalization(name="norm")(layers.Dense(5, use_bias=False, name="dense")(x)), (4,)
    )
    norm, dense = model.get_layer("norm"), model.get_layer("dense")
    rng = np.random.default_rng(0)
    norm.set_weights([rng.random(5, np.float32) + 0.5 for _ in range(4)])
    given = rng.random((6, 4), np.float32)
    kernel, bias = fold(dense, norm)
    np.testing.assert_allclose(given @ kernel + bias, model(given).numpy(), rtol=1e-4, atol=1e-5)


def test_the_annotated_copy_computes_what_the_model_does_and_leaves_it_alone() -> None:
    import tensorflow as tf

    def build(layers: Any, x: Any) -> Any:
        x = layers.Conv2D(4, 3, padding="same", activation="swish", name="conv")(x)
        shared = layers.Conv2D(4, 3, padding="same", name="shared")
        x = layers.Add(name="sum")([shared(x), shared(shared(x)), x])
        x = layers.Dense(5, name="dense")(layers.Flatten(name="flat")(x))
        return {"b": layers.BatchNormalization(name="norm")(x), "a": layers.ReLU(max_value=2.0, name="cap")(x[:, :2])}

    model = built(build)
    model.get_layer("norm").set_weights([np.full(5, value, np.float32) for value in (2.0, 0.5, 0.1, 1.5)])
    weights, given = model.get_weights(), np.random.default_rng(0).random((3, 8, 8, 2), np.float32)
    copy = annotate(model, {"conv", "shared", "sum", "flat", "dense"}, folded={})
    for made, expected in zip(copy(given), tf.nest.flatten(model(given)), strict=True):
        np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(new, old) for new, old in zip(model.get_weights(), weights, strict=True))
    assert len(model.get_layer("conv")._inbound_nodes) == 1
