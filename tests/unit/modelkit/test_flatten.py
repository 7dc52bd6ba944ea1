"""Flat models compute what the nested ones did, with the same layers; unique names lead back to their paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from squeezeflow.modelkit import layers, naming
from squeezeflow.modelkit.flatten import Flat, flatten

L = tf_keras.layers
RANDOM = np.random.default_rng(3)


def block(name: str, *, units: int = 6, inputs: int = 8, last: str = "out") -> Any:
    """Gives a Sequential with BatchNormalization whose statistics are not the initial ones."""
    model = tf_keras.Sequential(
        [
            tf_keras.Input((inputs,), name="x"),
            L.Dense(units, activation="relu", name="dense"),
            L.BatchNormalization(name="norm"),
            L.Dense(units, name=last),
        ],
        name=name,
    )
    shuffle(model.get_layer("norm"))
    return model


def shuffle(layer: Any) -> None:
    layer.set_weights([RANDOM.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])


def flat_and_equal(model: Any, *, training: bool = False) -> Flat:
    """Flattens a model and checks that outputs, names and weights are the same as before."""
    names = layers.input_names(model), layers.output_names(model)
    samples = [
        RANDOM.normal(size=(5, *tensor.shape[1:])).astype(tensor.dtype.as_numpy_dtype) for tensor in model.inputs
    ]
    given = tf.nest.pack_sequence_as(model._nested_inputs, samples)
    kept = model.get_weights()
    before = model(given, training=training)
    model.set_weights(kept)
    found = flatten(model)
    after = found.model(given, training=training)
    tf.nest.assert_same_structure(before, after)
    for one, other in zip(tf.nest.flatten(before), tf.nest.flatten(after), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (layers.input_names(found.model), layers.output_names(found.model)) == names
    assert not any(isinstance(layer, tf_keras.Model) for layer in found.model.layers)
    all_names = [layer.name for layer in found.model.layers]
    assert all_names == naming.unique(all_names) == list(found.paths)
    assert {id(weight) for weight in found.model.weights} == {id(weight) for weight in model.weights}
    assert {id(weight) for weight in found.model.trainable_weights} == {
        id(weight) for weight in model.trainable_weights
    }
    return found


def test_a_flat_model_is_given_back_as_it_is() -> None:
    model = block("plain")
    assert flatten(model) == Flat(model, {"dense": "dense", "norm": "norm", "out": "out"})


def test_sequential_models_in_sequential_models_are_inlined_at_every_depth() -> None:
    middle = tf_keras.Sequential([tf_keras.Input((8,)), block("inner"), L.ReLU(name="relu")], name="middle")
    found = flat_and_equal(tf_keras.Sequential([tf_keras.Input((8,), name="x"), middle, L.Dense(2, name="top")]))
    assert found.paths == {
        "x": "x",
        "dense": "middle/inner/dense",
        "norm": "middle/inner/norm",
        "out": "middle/inner/out",
        "relu": "middle/relu",
        "top": "top",
    }


def test_equal_names_of_nested_models_are_told_apart_and_lead_back_to_their_paths() -> None:
    x = tf_keras.Input((8,), name="x")
    y = L.Dense(3, name="dense")(L.Add(name="add")([block("left")(x), block("right")(x)]))
    found = flat_and_equal(tf_keras.Model(x, y))
    assert {name: path for name, path in found.paths.items() if "/" in path} == {
        "left_dense": "left/dense",
        "norm": "left/norm",
        "out": "left/out",
        "right_dense": "right/dense",
        "right_norm": "right/norm",
        "right_out": "right/out",
    }
    assert found.paths["dense"] == "dense"


def test_a_nested_model_that_is_used_twice_keeps_its_layers_shared() -> None:
    shared = block("tower")
    first, second = tf_keras.Input((8,), name="first"), tf_keras.Input((8,), name="second")
    found = flat_and_equal(tf_keras.Model([first, second], L.Subtract(name="sub")([shared(first), shared(second)])))
    assert [layer.name for layer in found.model.layers if layer.weights] == ["dense", "norm", "out"]
    assert len(found.model.get_config()["layers"][2]["inbound_nodes"]) == 2


def test_outputs_made_by_nested_models_keep_their_names() -> None:
    x = tf_keras.Input((8,), name="x")
    y = L.Dense(8, name="y")(x)
    pair_in = tf_keras.Input((8,))
    pair = tf_keras.Model(pair_in, [L.Dense(2, name="a")(pair_in), L.Dense(3, name="b")(pair_in)], name="pair")
    same_in = tf_keras.Input((8,))
    same = tf_keras.Model(same_in, same_in, name="same")
    shared = block("head")
    outputs = [*pair(y), y, same(y), shared(x), shared(y), same(x)]
    found = flat_and_equal(tf_keras.Model(x, outputs))
    assert (found.paths["pair"], found.paths["pair_1"]) == ("pair/a", "pair/b")
    assert found.paths["head"] == "head/out"


def test_dicts_of_inputs_and_outputs_stay_dicts() -> None:
    inputs = {"b": tf_keras.Input((8,), name="b"), "a": tf_keras.Input((8,), name="a")}
    inner_in = {"q": tf_keras.Input((8,), name="q"), "p": tf_keras.Input((8,), name="p")}
    inner_out = {"difference": L.Subtract()([inner_in["q"], inner_in["p"]]), "sum": L.Add()([*inner_in.values()])}
    inner = tf_keras.Model(inner_in, inner_out, name="inner")
    results = inner({"p": inputs["a"], "q": inputs["b"]})
    outputs = {"z": L.Dense(2, name="first")(results["difference"]), "y": L.Dense(2, name="second")(results["sum"])}
    flat_and_equal(tf_keras.Model(inputs, outputs))


def test_a_frozen_backbone_called_for_inference_stays_frozen_and_in_inference() -> None:
    backbone, tuned = block("backbone"), block("tuned", inputs=6)
    backbone.trainable = False
    tuned._trainable = False
    x = tf_keras.Input((8,), name="x")
    y = L.Dense(3, name="scores")(tuned(backbone(x, training=False), training=False))
    found = flat_and_equal(tf_keras.Model(x, y), training=True)
    assert [layer.name for layer in found.model.layers if layer.trainable_weights] == ["scores"]


def test_a_model_that_inlining_would_change_is_left_in_place() -> None:
    numbers = tf_keras.Input((8,), dtype="int32", name="numbers")
    model = tf_keras.Model(numbers, L.Dense(2, name="scores")(block("casts")(numbers)))
    found = flatten(model)
    assert found.paths == {"numbers": "numbers", "casts": "casts", "scores": "scores"}
    samples = np.arange(16, dtype="i").reshape(2, 8)
    np.testing.assert_array_equal(model(samples), found.model(samples))


def test_a_mobilenet_backbone_is_quantized_once_it_is_flat_and_its_file_is_the_same_model(tmp_path: Path) -> None:
    import tensorflow_model_optimization as tfmot

    backbone = tf_keras.applications.MobileNetV2((32, 32, 3), 0.35, include_top=False, weights=None)
    image = tf_keras.Input((32, 32, 3), name="image")
    x = L.GlobalAveragePooling2D(name="pool")(backbone(image))
    model = tf_keras.Model(image, L.Dense(3, activation="softmax", name="scores")(x))
    found = flat_and_equal(model)
    assert found.paths["Conv1"] == "mobilenetv2_0.35_32/Conv1"
    found.model.save(tmp_path / "flat.keras")
    reloaded = tf_keras.models.load_model(tmp_path / "flat.keras", compile=False)
    samples = RANDOM.random((2, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(model(samples), reloaded(samples))
    assert len(tfmot.quantization.keras.quantize_annotate_model(found.model).layers) == len(found.model.layers)
