"""The table of layers says what the libraries really do."""

from __future__ import annotations

from typing import Any

import pytest

from squeezeflow.modelkit import layers, support


def built(layer: Any, *shape: int | None) -> Any:
    import tf_keras

    inputs = tf_keras.Input(shape)
    layer(inputs)
    return layer


def test_what_is_pruned_is_what_tfmot_prunes() -> None:
    from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import PruneRegistry

    registry = {
        layer.__name__: tuple(names)
        for table in (PruneRegistry._LAYERS_WEIGHTS_MAP, PruneRegistry._RNN_CELLS_WEIGHTS_MAP)
        for layer, names in table.items()
        if names
    }
    assert registry == {name: kernels for name, kernels in support.PRUNED_KERNELS.items() if "cell" not in kernels[0]}
    recurrent = {layer.__name__ for layer in PruneRegistry._RNN_LAYERS} - {"RNN"}
    assert recurrent == {name for name, kernels in support.PRUNED_KERNELS.items() if "cell" in kernels[0]}


def test_every_kernel_of_the_table_is_there_in_its_layer() -> None:
    import operator

    import tf_keras

    made = {
        "Conv2D": built(tf_keras.layers.Conv2D(2, 3), 8, 8, 1),
        "SeparableConv2D": built(tf_keras.layers.SeparableConv2D(2, 3), 8, 8, 1),
        "Embedding": built(tf_keras.layers.Embedding(4, 2), 3),
        "LSTM": built(tf_keras.layers.LSTM(2), 4, 3),
    }
    for name, layer in made.items():
        for kernel in support.PRUNED_KERNELS[name]:
            assert operator.attrgetter(kernel)(layer).shape.rank >= 2


@pytest.mark.parametrize(
    ("class_name", "options", "shape", "reason"),
    [
        ("Dense", {"units": 2}, (4,), ""),
        ("DepthwiseConv2D", {"kernel_size": 3}, (8, 8, 1), "depthwise"),
        ("BatchNormalization", {}, (4,), "no kernel that TFMOT prunes"),
        ("ReLU", {}, (4,), "has no weights"),
        ("PReLU", {}, (4,), "no kernel that TFMOT prunes"),
        ("ConvLSTM2D", {"filters": 1, "kernel_size": 2}, (2, 4, 4, 1), "no kernel that TFMOT prunes"),
    ],
)
def test_pruning_says_why_not(class_name: str, options: dict[str, Any], shape: tuple[int, ...], reason: str) -> None:
    import tf_keras

    found = support.prune_reason(built(getattr(tf_keras.layers, class_name)(**options), *shape))
    assert reason in found
    assert bool(found) == bool(reason)


def test_layers_of_keras_3_are_pruned_as_those_of_tf_keras() -> None:
    import keras

    dense, depthwise = keras.layers.Dense(2), keras.layers.DepthwiseConv2D(3)
    dense.build((None, 4))
    depthwise.build((None, 8, 8, 1))
    assert support.prune_reason(dense) == ""
    assert "depthwise" in support.prune_reason(depthwise)


@pytest.mark.parametrize(
    ("class_name", "options", "steps", "reason"),
    [
        ("GRU", {"units": 2}, 4, ""),
        ("GRU", {"units": 2}, None, "kills the converter; its number of steps is not known"),
        ("GRU", {"units": 2}, 300, "kills the converter; it takes"),
        ("GRU", {"units": 2, "unroll": True}, 4, ""),
        ("SimpleRNN", {"units": 2}, None, "kills the converter"),
        ("LSTM", {"units": 2}, 4, ""),
        ("LSTM", {"units": 2}, None, "no int16 kernel for UNIDIRECTIONAL_SEQUENCE_LSTM; its number of steps"),
        ("LSTM", {"units": 2, "unroll": True}, 4, ""),
    ],
)
def test_what_cannot_be_unrolled_is_known_before(
    class_name: str, options: dict[str, Any], steps: int | None, reason: str
) -> None:
    import tf_keras

    layer = built(getattr(tf_keras.layers, class_name)(**options), steps, 3)
    assert reason in support.quantize_reason(layer)
    wrapped = built(tf_keras.layers.Bidirectional(getattr(tf_keras.layers, class_name)(**options)), steps, 3)
    assert reason in support.quantize_reason(wrapped)
    assert bool(support.quantize_reason(layer)) == bool(support.quantize_reason(wrapped)) == bool(reason)


def test_convolutions_that_loop_cannot_be_unrolled() -> None:
    import tf_keras

    layer = built(tf_keras.layers.ConvLSTM2D(1, 2), 2, 4, 4, 1)
    assert "kills the converter; ConvLSTM2D does not unroll" in support.quantize_reason(layer)


@pytest.mark.parametrize(
    ("class_name", "options", "shape", "operator"),
    [
        ("LayerNormalization", {}, (4,), "SQUARED_DIFFERENCE"),
        ("Dense", {"units": 2, "activation": "elu"}, (4,), "ELU"),
        ("Conv3D", {"filters": 2, "kernel_size": 2}, (4, 4, 4, 1), "CONV_3D"),
        ("GRU", {"units": 2, "activation": "elu"}, (4, 3), "ELU"),
        ("GRU", {"units": 2, "activation": "elu", "unroll": True}, (4, 3), "ELU"),
        ("Embedding", {"input_dim": 4, "output_dim": 2}, (3,), "CAST"),
        ("Dense", {"units": 2, "activation": "gelu"}, (4,), ""),
    ],
)
def test_what_has_no_int16_kernel_is_known_before(
    class_name: str, options: dict[str, Any], shape: tuple[int, ...], operator: str
) -> None:
    import tf_keras

    reason = support.quantize_reason(built(getattr(tf_keras.layers, class_name)(**options), *shape))
    assert reason.startswith("int16x8: there is no int16 kernel for") == bool(operator)
    assert operator in reason


def test_text_and_half_precision_do_not_convert() -> None:
    import tf_keras

    assert "takes text" in support.convert_reason(tf_keras.layers.StringLookup(vocabulary=["a"]))
    half = built(tf_keras.layers.Dense(2, dtype="mixed_float16"), 4)
    assert "float16" in support.convert_reason(half)
    assert support.convert_reason(built(tf_keras.layers.Dense(2), 4)) == ""


# Layers


def test_nested_models_are_walked_with_the_path_of_their_model() -> None:
    import tf_keras

    inner = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3, name="a")], name="inner")
    outer = tf_keras.Sequential([tf_keras.Input((4,)), inner, tf_keras.layers.Dense(2, name="b")], name="outer")
    assert [path for path, _ in layers.walk(outer)][-2:] == ["inner/a", "b"]


@pytest.mark.parametrize(
    ("activation", "tail", "meaning"),
    [
        ("softmax", [], "probabilities"),
        ("sigmoid", [], "probabilities"),
        ("softmax", ["Flatten"], "probabilities"),
        ("tanh", [], "values"),
        (None, [], ""),
        (None, ["Softmax"], "probabilities"),
    ],
)
def test_what_an_output_means_is_read_from_its_last_activation(
    activation: str | None, tail: list[str], meaning: str
) -> None:
    import tf_keras

    from squeezeflow.modelkit.compile_config import CompileConfig

    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3, activation=activation)])
    for name in tail:
        model.add(getattr(tf_keras.layers, name)())
    assert layers.meaning(model, 0, CompileConfig()) == meaning


def test_a_loss_on_logits_says_that_a_linear_output_is_logits() -> None:
    import tf_keras

    from squeezeflow.modelkit.compile_config import CompileConfig

    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3)])
    assert layers.meaning(model, 0, CompileConfig("sparse_categorical_crossentropy", True)) == "logits"
    assert layers.meaning(model, 0, CompileConfig("mean_squared_error")) == "values"
