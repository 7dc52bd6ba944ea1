"""Why quantization-aware training leaves a layer float: told without TFMOT, for layers of both Keras libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests import models  # sets the environment that tf_keras needs

from squeezeflow.modelkit.quantizable import train_quantized_reason

assert models.CLASSES


def library(name: str) -> Any:
    import keras
    import tf_keras

    return keras if name == "keras" else tf_keras


def reason(
    make: Callable[[Any], Any], *, shape: tuple[int, ...] = (8, 8, 2), of: str = "tf_keras", **options: Any
) -> str:
    keras = library(of)
    layer = make(keras.layers)
    layer(keras.Input(shape, **options))
    return train_quantized_reason(layer)


@pytest.mark.parametrize("of", ["tf_keras", "keras"])
@pytest.mark.parametrize(
    "make",
    [
        lambda layers: layers.Conv2D(4, 3, activation="relu"),
        lambda layers: layers.Conv2D(4, 3, dilation_rate=2),
        lambda layers: layers.DepthwiseConv2D(3),
        lambda layers: layers.Conv2DTranspose(4, 3),
        lambda layers: layers.SeparableConv2D(4, 3, activation="relu6"),
        lambda layers: layers.ReLU(6.0),
        lambda layers: layers.MaxPooling2D(),
        lambda layers: layers.Activation("gelu"),
        lambda layers: layers.Flatten(),
    ],
)
def test_layers_that_are_quantized_have_no_reason(make: Callable[[Any], Any], of: str) -> None:
    assert reason(make, of=of) == ""


@pytest.mark.parametrize("of", ["tf_keras", "keras"])
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda layers: layers.Conv2D(4, 3, activation="elu"), "activation elu"),
        (lambda layers: layers.DepthwiseConv2D(3, dilation_rate=2), "dilated DepthwiseConv2D"),
        (lambda layers: layers.ReLU(3.0), "no ReLU with this maximum"),
        (lambda layers: layers.Dense(4), "more than one axis"),
        (lambda layers: layers.BatchNormalization(), "only right after"),
        (lambda layers: layers.Rescaling(2.0), "no fake quantization for Rescaling"),
        (lambda layers: layers.LayerNormalization(), "no fake quantization for LayerNormalization"),
    ],
)
def test_layers_left_float_say_why(make: Callable[[Any], Any], expected: str, of: str) -> None:
    assert expected in reason(make, of=of)


@pytest.mark.parametrize("of", ["tf_keras", "keras"])
def test_a_normalization_is_quantized_behind_what_it_is_folded_into(of: str) -> None:
    keras = library(of)
    inputs = keras.Input((8, 8, 2))
    plain, curved = keras.layers.Conv2D(4, 3), keras.layers.Conv2D(4, 3, activation="relu")
    good, bad = keras.layers.BatchNormalization(), keras.layers.BatchNormalization()
    good(plain(inputs))
    bad(curved(inputs))
    assert train_quantized_reason(good) == ""
    assert "only right after" in train_quantized_reason(bad)


def test_a_normalization_behind_a_layer_that_is_used_twice_is_left_float() -> None:
    keras = library("tf_keras")
    conv, norm = keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()
    x = conv(keras.Input((8, 8, 2)))
    keras.layers.ReLU()(x)
    norm(x)
    assert "only right after" in train_quantized_reason(norm)


def test_integers_and_half_precision_are_left_alone() -> None:
    assert "takes integers" in reason(lambda layers: layers.Flatten(), dtype="int32")
    assert "mixed precision" in reason(lambda layers: layers.Dense(3, dtype="mixed_float16"), shape=(4,))
