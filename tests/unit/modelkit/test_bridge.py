"""Keras 3 models rebuilt in tf_keras compute the same under the same names, also once they were written and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests import models

from squeezeflow.core.datasets import Dataset, synthetic_inputs
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import bridge, layers
from squeezeflow.modelkit.bridge.replay import twin_of_model
from squeezeflow.modelkit.flatten import flatten
from squeezeflow.modelkit.keras_file import write_keras
from squeezeflow.modelkit.proof import draw_samples
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.v1 import artifact_pb2

L, Input, ops = keras.layers, keras.Input, keras.ops
RANDOM = np.random.default_rng(11)


def opened(path: Path) -> Source:
    kind = artifact_pb2.ARTIFACT_KIND_KERAS if path.suffix else artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
    return open_source(ArtifactPath(kind, path))


def shuffle(model: Any) -> None:
    """Moves weights away from zeros and ones, so that one that is left out or swapped shows."""
    for weight in model.weights:
        low, high = (0.5, 1.5) if "variance" in weight.path else (-0.2, 0.2)
        moved = RANDOM.uniform(low, high, weight.shape)
        weight.assign(moved if "variance" in weight.path else np.asarray(weight) + moved)


def bridged(model: Any, folder: Path, *, limit: float = 1e-5, written: bool = True) -> tuple[Source, Source]:
    """Gives the source and its twin, which are equal, and where asked so is the twin that was written and read."""
    shuffle(model)
    source = opened(models.save(model, folder / "keras3.keras"))
    twin = bridge.trainable(source, "prune")
    others = [twin]
    if written:
        write_keras(twin.keras, folder / "twin.keras", twin.compile_config)
        others.append(opened(folder / "twin.keras"))
    samples = synthetic_inputs(source.contract, 5, 3)
    expected = source.predict(samples)
    for other in others:
        assert [tensor.name for tensor in other.contract.inputs] == list(samples)
        found = other.predict(samples)
        assert list(found) == list(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=limit * np.abs(values).max())
    return source, twin


def sequential(shape: tuple[int | None, ...], *stack: Any, dtype: str = "float32") -> Any:
    return keras.Sequential([Input(shape, dtype=dtype, name="x"), *stack])


def images() -> Any:
    return sequential(
        (12, 12, 3),
        L.Conv2D(4, 3, activation="silu", kernel_regularizer="l2", kernel_constraint="max_norm", name="conv"),
        L.BatchNormalization(),
        L.DepthwiseConv2D(3, name="depthwise"),
        L.SeparableConv2D(4, 3, padding="same", name="separable"),
        L.LeakyReLU(0.1),
        L.PReLU(shared_axes=[1, 2]),
        L.Conv2DTranspose(3, 3, strides=2, padding="same"),
        L.UpSampling2D(interpolation="bilinear"),
        L.GroupNormalization(3),
        L.ZeroPadding2D(1),
        L.AveragePooling2D(3),
        L.SpatialDropout2D(0.2),
        L.Flatten(),
        L.Dense(3, activation="softmax", name="scores"),
    )


def lines() -> Any:
    return sequential(
        (8, 6),
        L.Conv1D(4, 3, activation="mish"),
        L.Conv1DTranspose(3, 3, strides=2),
        L.SeparableConv1D(3, 2),
        L.MaxPooling1D(),
        L.GlobalAveragePooling1D(),
    )


def volumes() -> Any:
    return sequential(
        (4, 4, 4, 2), L.Conv3D(3, 2), L.Conv3DTranspose(2, 2, strides=2), L.MaxPooling3D(), L.GlobalMaxPooling3D()
    )


def raw_images() -> Any:
    return sequential(
        (8, 8, 3),
        L.Rescaling(1 / 255),
        L.RandomFlip(),
        L.RandomRotation(0.1),
        L.RandomContrast(0.1),
        L.CenterCrop(6, 6),
        L.Resizing(5, 5),
        L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 0.5]),
        L.GaussianNoise(0.1),
        dtype="uint8",
    )


def adapted() -> Any:
    layer = L.Normalization()
    layer.adapt(RANDOM.normal(2, 3, (20, 4)).astype("f"))
    return sequential((4,), layer, L.Dense(3), L.UnitNormalization())


def sequences() -> Any:
    return sequential(
        (5, 4),
        L.Masking(),
        L.Bidirectional(L.LSTM(3, return_sequences=True, unroll=True), merge_mode="sum"),
        L.TimeDistributed(keras.Sequential([Input((3,)), L.Dense(4, activation="tanh")], name="each")),
        L.GRU(3, unroll=True),
    )


def states() -> Any:
    x = Input((4, 3), name="x")
    values, *state = L.LSTM(2, return_state=True, unroll=True, name="encoder")(x)
    return keras.Model(x, [L.LSTM(2, unroll=True, name="decoder")(x, initial_state=state), values])


def text() -> Any:
    ids = Input((7,), dtype="int32", name="ids")
    embedded = L.Embedding(9, 4, mask_zero=True)(ids)
    attended = L.MultiHeadAttention(2, 3)(embedded, embedded, use_causal_mask=True)
    normed = L.LayerNormalization()(L.Add()([embedded, attended]))
    return keras.Model(ids, L.Dense(2, name="label")(L.GlobalAveragePooling1D()(normed)))


def shared() -> Any:
    first, second = Input((8,), name="zeta"), Input((8,), name="alpha")
    twice = L.Dense(8, activation="relu", name="twice")
    x = L.Concatenate()([L.Add()([twice(first), twice(twice(second))]), first])
    return keras.Model([first, second], [L.Dense(2, name="b")(x), L.EinsumDense("ab,bc->ac", 3, name="a")(x)])


def dicts() -> Any:
    inputs = {"b": Input((4,), name="second"), "a": Input((4,), name="first")}
    difference = L.Subtract()([inputs["b"], inputs["a"]])
    return keras.Model(inputs, {"z": L.Dense(2, name="p")(difference), "y": L.Dense(2, name="q")(inputs["b"])})


def mixed() -> Any:
    policy = {"dtype": "mixed_float16"}
    return sequential((8, 8, 3), L.Conv2D(4, 3, **policy), L.BatchNormalization(**policy), L.Flatten(), L.Dense(3))


def kinds(source: Source) -> dict[str, str]:
    """Gives the class of every layer by path; a Sequential of Keras 3 does not tell of its Input layer."""
    found = {path: type(layer).__name__ for path, layer in layers.walk(source.model)}
    return {path: kind for path, kind in found.items() if kind != "InputLayer"}


MODELS = [images, lines, volumes, raw_images, adapted, sequences, states, text, shared, dicts, mixed]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_the_twin_of_a_model_has_its_layers_and_computes_the_same(make: Callable[[], Any], tmp_path: Path) -> None:
    source, twin = bridged(make(), tmp_path, limit=4e-3 if make is mixed else 1e-5)
    assert kinds(twin) == kinds(source)
    assert (twin.format, twin.written_by, twin.compile_config) == (
        source.format,
        source.written_by,
        source.compile_config,
    )
    assert any("rebuilt in tf_keras" in note for note in twin.notes)


def ops_of_numbers(x: Any, y: Any) -> Any:
    scaled = (2 - x * 2 + 1 - 0.5) / 4 + np.array([1, 2, 3], "f") - y
    powers = ops.abs(x) ** 2.5 + ops.exp(x) + ops.sqrt(ops.square(x) + 1) - ops.log1p(ops.abs(y)) + 1 / (y + 3)
    extremes = ops.maximum(x, y) * ops.minimum(x, y) + ops.round(x * 3) - ops.negative(y)
    return [scaled, powers, extremes, x * 2.5]


def ops_of_shapes(x: Any, y: Any) -> Any:
    return [
        *(ops.reshape(x, (-1, 12)), ops.reshape(x, (-1, 3)), ops.transpose(x, (0, 2, 1)), ops.transpose(x)),
        *(ops.swapaxes(x, 1, 2), ops.expand_dims(x, 1), ops.squeeze(ops.expand_dims(x, -1), -1)),
        *(ops.concatenate([x, y], axis=1), ops.stack([x, y], axis=1), ops.repeat(x, 2, axis=1), ops.flip(x, axis=1)),
        *(ops.tile(x, (1, 2, 1)), ops.pad(x, [[0, 0], [1, 1], [0, 2]]), ops.cumsum(x, axis=1)),
        *(x[:, 0], x[:, 1:, ::2], x[..., 0], x[:, None]),
        *(*ops.split(x, 2, axis=1), *ops.split(x, [1, 3], axis=1)),
        *(ops.take(x, np.array([0, 2]), axis=1), ops.broadcast_to(x[:, :1, :], (5, 4, 3))),
    ]


def ops_of_many(x: Any, y: Any) -> Any:
    return [
        *(ops.mean(x, axis=(1, 2)), ops.sum(x, axis=1, keepdims=True), ops.max(x, axis=-1), ops.min(x, 1)),
        *(ops.var(x, axis=1), ops.std(x, axis=[1, 2]), ops.logsumexp(x, axis=1), ops.argmax(x, axis=-1)),
        *(ops.matmul(x, ops.transpose(y, (0, 2, 1))), x @ np.arange(6, dtype="f").reshape(3, 2)),
        *(ops.where(x > y, x, 0.0), ops.clip(x, -0.5, 0.5), ops.cast(ops.equal(x, y), "float32")),
        *(ops.cast(ops.any(x > 0.5, axis=1), "int32") * 2.5, ops.where(ops.logical_not(x <= y), 1.0, y)),
    ]


def ops_of_activations(x: Any, y: Any) -> Any:
    gates = (
        ops.relu(x) + ops.relu6(x * 9) + ops.leaky_relu(x, 0.1) + ops.elu(x) + ops.hard_silu(x) + ops.hard_sigmoid(x)
    )
    curves = ops.sigmoid(x) + ops.tanh(x) + ops.softplus(x) + ops.silu(y) + ops.gelu(x) + ops.gelu(x, approximate=False)
    return [
        gates + ops.hard_sigmoid(x),
        curves,
        ops.softmax(x),
        ops.log_softmax(x),
        ops.hard_tanh(x * 3),
        ops.log_sigmoid(x),
    ]


@pytest.mark.parametrize("make", [ops_of_numbers, ops_of_shapes, ops_of_many, ops_of_activations])
def test_operations_in_the_graph_become_layers_and_functions_that_a_file_can_hold(
    make: Callable[[Any, Any], Any], tmp_path: Path
) -> None:
    x, y = Input((4, 3), batch_size=5, name="x"), Input((4, 3), batch_size=5, name="y")
    bridged(keras.Model([x, y], make(x, y)), tmp_path)


def test_constant_factors_and_sums_of_equal_shapes_are_layers() -> None:
    x = Input((4,), name="x")
    twin = twin_of_model(keras.Model(x, ops.relu6(x * 2 + 1) + x))
    assert [type(layer).__name__ for layer in twin.layers[1:]] == ["Rescaling", "Rescaling", "ReLU", "Add"]


def test_activations_that_tf_keras_has_not_are_built_of_layers_and_outputs_keep_their_names(tmp_path: Path) -> None:
    stack = [
        L.Conv2D(4, 3, activation="hard_silu", name="swish"),
        L.Activation("hard_silu", name="alone"),
        L.Dense(4, activation=L.LeakyReLU(0.2, name="leaky"), name="by_layer"),
        L.Dense(4, activation="log_sigmoid"),
        L.Dense(3, activation="hard_sigmoid", name="gates"),
    ]
    _, twin = bridged(sequential((6, 6, 3), *stack), tmp_path)
    assert twin.contract.outputs[0].name == "gates"
    assert {"swish", "alone", "by_layer", "by_layer_leaky", "gates_linear"} < {x.name for x in twin.keras.layers}
    (tmp_path / "model.tflite").write_bytes(twin.converter().convert())
    operators = [op.name for op in TfliteFile.read(tmp_path / "model.tflite").main.operators]
    assert operators.count("HARD_SWISH") == 2


def backbone(name: str, width: int) -> Any:
    inner = [L.Dense(width, name="dense"), L.BatchNormalization(name="norm"), L.Dropout(0.2, name="drop")]
    return keras.Sequential([Input((width,), name="in"), *inner], name=name)


def test_nested_models_stay_nested_with_their_frozen_layers_and_their_way_of_being_called(tmp_path: Path) -> None:
    x = Input((6,), name="x")
    frozen, open_ = backbone("frozen", 6), backbone("open", 6)
    frozen.trainable = False
    outer = keras.Sequential([Input((6,)), open_, L.Dense(6, trainable=False, name="still")], name="outer")
    y = L.Add(name="sum")([outer(frozen(x, training=False)), outer(x)])
    _, twin = bridged(keras.Model(x, L.Dense(2, name="scores")(y)), tmp_path)
    trained = {path for path, layer in layers.walk(twin.keras) if layer.trainable_weights}
    assert trained == {"outer/open/dense", "outer/open/norm", "scores"}
    (node,) = [node for node in twin.keras.get_layer("frozen")._inbound_nodes if node.call_kwargs]
    assert node.call_kwargs["training"] is False
    assert len(flatten(twin.keras).paths) == 10


def test_mobilenets_are_rebuilt_alone_and_as_a_backbone(tmp_path: Path) -> None:
    small = keras.applications.MobileNetV3Small((32, 32, 3), alpha=0.25, weights=None, classes=3)
    bridged(small, tmp_path, written=False)
    image = Input((32, 32, 3), name="image")
    base = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None)
    pooled = L.GlobalAveragePooling2D(name="pool")(base(image, training=False))
    _, twin = bridged(keras.Model(image, L.Dense(3, name="scores")(pooled)), tmp_path, written=False)
    assert [layer.name for layer in twin.keras.layers] == ["image", base.name, "pool", "scores"]


class Own(keras.layers.Layer):
    """A layer of somebody's own."""

    def call(self, x: Any) -> Any:
        return x


REFUSED = {
    "own": (lambda: Own(name="own"), "a class of its own"),
    "code": (lambda: L.Lambda(lambda x: x, name="code"), "code of its own"),
    "root": (lambda: L.RMSNormalization(name="root"), "no layer RMSNormalization"),
    "renorm": (lambda: L.BatchNormalization(renorm=True, name="renorm"), "no setting renorm"),
    "threshold": (lambda: L.Dense(2, activation="squareplus", name="threshold"), "squareplus"),
    "gates": (lambda: L.LSTM(2, recurrent_activation="hard_sigmoid", name="gates"), "recurrent_activation"),
    "inner": (lambda: L.TimeDistributed(L.Dense(2, activation="hard_silu"), name="inner"), "inner layer"),
    "gated": (lambda: L.MultiHeadAttention(1, 2, use_gate=True, name="gated"), "no setting use_gate"),
    "spectrum": (lambda: Spectrum(), "operation that the bridge does not know"),
}


class Spectrum:
    """Calls an operation that is not in the table."""

    def __call__(self, x: Any) -> Any:
        return keras.src.ops.numpy.Nanmax(axis=1, name="spectrum")(x)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_twin_is_refused_by_name(name: str) -> None:
    make, says = REFUSED[name]
    x, layer = Input((4, 3), name="x"), make()
    y = layer(x, x) if name == "gated" else layer(x)
    with pytest.raises(SqueezeflowError, match=says) as caught:
        twin_of_model(keras.Model(x, y))
    assert (caught.value.reason, caught.value.metadata["layer"]) == ("UNSUPPORTED_LAYER", name)


def test_a_twin_that_computes_something_else_is_refused_with_the_difference(tmp_path: Path) -> None:
    # Keras 3 takes the mask off the tensors that MultiHeadAttention has seen; tf_keras leaves it.
    ids = Input((7,), dtype="int32", name="ids")
    embedded = L.Embedding(9, 4, mask_zero=True)(ids)
    attended = L.MultiHeadAttention(2, 3)(embedded, embedded)
    model = keras.Model(ids, L.Attention(name="late")([attended, embedded]))
    shuffle(model)
    with pytest.raises(SqueezeflowError, match=r"output late .* synthetic") as caught:
        bridge.trainable(opened(models.save(model, tmp_path / "model.keras")), "prune")
    assert caught.value.reason == "OUTPUT_MISMATCH"
    assert float(caught.value.metadata["difference"]) > 1e-3
    assert caught.value.metadata["layer"] == "late"
    assert "beginning with layer late" in caught.value.message


@pytest.mark.parametrize("sensitive", [False, True], ids=["exact", "sensitive"])
def test_rounding_is_forgiven_to_a_model_only_as_far_as_it_makes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sensitive: bool
) -> None:
    # Where 1,000 is added and taken away again, the last bit of an input is a ten-thousandth of the output.
    inner = [L.Rescaling(1.0, offset=1000.0), L.LayerNormalization()] if sensitive else [L.LayerNormalization()]
    model = keras.Sequential([Input((64,)), *inner, L.Dense(3, name="head")])
    shuffle(model)
    source = opened(models.save(model, tmp_path / "model.keras"))

    def nearly(given: Any) -> Any:
        twin = twin_of_model(given)
        bias = twin.get_layer("head").bias
        bias.assign(
            bias + 2e-5 * float(np.abs(source.predict(draw_samples(source.contract, None, 0)[0])["head"]).max())
        )
        return twin

    monkeypatch.setattr(bridge, "twin_of_model", nearly)
    if sensitive:
        assert float(bridge.trainable(source, "prune").notes[-1].rpartition(" ")[2]) > 1e-5
        return
    with pytest.raises(SqueezeflowError) as caught:
        bridge.trainable(source, "prune")
    assert caught.value.reason == "OUTPUT_MISMATCH"


def test_real_samples_are_compared_besides_random_ones(tmp_path: Path) -> None:
    source = opened(models.keras3_file(tmp_path))
    np.savez(tmp_path / "data.npz", x_train=RANDOM.random((20, 28, 28, 1), np.float32), y_train=np.arange(20) % 10)
    twin = bridge.trainable(source, "prune", Dataset.open(tmp_path / "data.npz").bind(source.contract))
    assert "synthetic samples (seed 0) and compared on 20 samples of train" in twin.notes[-1]


def test_tf_keras_models_are_taken_as_they_are_and_graphs_are_refused(tmp_path: Path) -> None:
    source = opened(models.tf_keras_file(tmp_path))
    assert bridge.trainable(source, "prune") is source
    with pytest.raises(SqueezeflowError, match=r"cluster trains Keras models.*without layers") as caught:
        bridge.trainable(opened(models.saved_model(tmp_path)), "cluster")
    assert caught.value.reason == "UNSUPPORTED_INPUT"
