"""Strided 1×1 convolutions are trained without the gradient kernel that corrupts memory, and compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from squeezeflow.modelkit.pointwise import without_strides


def model() -> Any:
    layers = tf_keras.layers
    inner = tf_keras.Sequential([tf_keras.Input((48, 48, 8)), layers.Conv2D(16, 1, strides=2, padding="same")])
    inputs = tf_keras.Input((48, 48, 8))
    x = layers.Conv2D(8, 3, padding="same", strides=1)(inputs)
    x = layers.Conv2D(4, 1, strides=3, padding="valid", activation="relu")(inner(x))
    return tf_keras.Model(inputs, layers.Conv1D(4, 1, strides=2)(layers.Reshape((64, 4))(x)))


def strides_of_filter_gradients(built: Any, x: tf.Tensor) -> list[list[int]]:
    @tf.function
    def gradients(batch: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(built(batch, training=True))
        return tape.gradient(loss, built.trainable_weights)

    operations = gradients.get_concrete_function(x).graph.get_operations()
    return [list(op.get_attr("strides")) for op in operations if op.type == "Conv2DBackpropFilter"]


def test_no_gradient_of_a_strided_kernel_is_left() -> None:
    built, x = model(), tf.zeros((2, 48, 48, 8))
    assert sum(max(strides) > 1 for strides in strides_of_filter_gradients(built, x)) == 3
    with without_strides(built):
        assert strides_of_filter_gradients(built, x) == [[1, 1, 1, 1]] * 4
    assert sum(max(strides) > 1 for strides in strides_of_filter_gradients(built, x)) == 3, "as it was"


def test_the_model_computes_the_same() -> None:
    built = model()
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 48, 48, 8)).astype(np.float32))
    expected = built(x).numpy()
    with without_strides(built):
        np.testing.assert_allclose(built(x).numpy(), expected, rtol=1e-5, atol=1e-6)
