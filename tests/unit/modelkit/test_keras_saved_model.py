"""A SavedModel that tf_keras saved is a Keras model where its signature is the model's forward pass; else a graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.converter import convert, describe, export
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath, StepInputs
from squeezeflow.modelkit import bridge, keras_metadata, keras_saved_model, saved_model_source, scan
from squeezeflow.modelkit.layers import walk
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.v1 import artifact_pb2, technique_pb2

SAVED_MODEL = artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
BASIC_PITCH = Path(__file__).parents[2] / "data" / "models" / "basic_pitch" / "nmp"
RANDOM = np.random.default_rng(0)


def opened(path: Path, signature: str = "", **options: Any) -> Source:
    return open_source(ArtifactPath(SAVED_MODEL, path), signature, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def cnn(folder: Path) -> Path:
    model = models.tf_keras_cnn()
    models.compile_adam(model, "sparse_categorical_crossentropy", learning_rate=0.002)
    return models.keras_saved_model(model, folder / "cnn")


def small(*, units: int = 3) -> Any:
    """Gives a tf_keras model of 4 numbers."""
    import tf_keras

    tf_keras.utils.set_random_seed(3)
    x = tf_keras.Input((4,), name="x")
    hidden = tf_keras.layers.Dense(units, activation="relu", name="hidden")(x)
    return tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(hidden), name="small")


@pytest.fixture(scope="module")
def served(folder: Path) -> Path:
    """Writes the small model under signatures of every relation to its forward pass."""
    import tensorflow as tf

    model = small()

    def signature(shape: Any, dtype: Any, body: Any, name: str = "x") -> Any:
        return tf.function(body).get_concrete_function(tf.TensorSpec(shape, dtype, name=name))

    return models.keras_saved_model(
        model,
        folder / "served",
        plain=signature((None, 4), tf.float32, lambda x: {"y": model(x)}),
        scaled=signature((None, 4), tf.float32, lambda x: {"y": model(x / 255.0)}),
        cut=signature((None, 4), tf.float32, lambda x: {"y": model.get_layer("hidden")(x)}),
        single=signature((1, 4), tf.float32, lambda x: {"y": model(x)}),
        bytes=signature((None, 4), tf.uint8, lambda x: {"y": model(tf.cast(x, tf.float32))}),
        renamed=signature((None, 4), tf.float32, lambda pixels: {"y": model(pixels)}, "pixels"),
        two=signature((None, 4), tf.float32, lambda x: {"y": model(x), "copy": model(x)}),
    )


# What is taken


def test_the_layers_names_and_compile_settings_are_those_of_the_keras_model(cnn: Path) -> None:
    source = opened(cnn)
    assert source.format == "Keras SavedModel"
    assert source.written_by.startswith("tf_keras 2.")
    assert source.keras is source.model
    assert [path for path, _ in walk(source.keras)][:3] == ["image", "conv", "norm"]
    assert source.contract.signature == "serving_default"
    assert [(t.name, list(t.shape)) for t in source.contract.inputs] == [("image", [-1, 28, 28, 1])]
    assert [(t.name, t.meaning) for t in source.contract.outputs] == [("probabilities", "probabilities")]
    assert source.compile_config.loss == "sparse_categorical_crossentropy"
    assert source.compile_config.learning_rate == pytest.approx(0.002)
    assert any("signature serving_default gives the same outputs on 8 random samples" in n for n in source.notes)
    for kept, original in zip(source.keras.get_weights(), models.tf_keras_cnn().get_weights(), strict=True):
        np.testing.assert_array_equal(kept, original)


def sequential() -> Any:
    """Gives a model whose input was known only once it was called."""
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Dense(3), tf_keras.layers.Dense(2)])
    model(np.ones((1, 4), np.float32))
    return model


def nested() -> Any:
    """Gives a model with a frozen model and a normalization, whose values are state, inside."""
    import tf_keras

    layers = tf_keras.layers
    normalization = layers.Normalization(name="normal")
    normalization.adapt(RANDOM.normal(5.0, 3.0, (64, 4)).astype(np.float32))
    inner = small()
    inner.trainable = False
    x = tf_keras.Input((4,), name="x")
    return tf_keras.Model(x, layers.Dense(1, name="head")(inner(normalization(x))), name="outer")


def two_inputs() -> Any:
    import tf_keras

    layers = tf_keras.layers
    zeta, alpha = tf_keras.Input((6,), name="zeta"), tf_keras.Input((6,), name="alpha")
    merged = layers.Concatenate()([layers.Dense(5, activation="tanh")(zeta), tf_keras.activations.relu(alpha) * 2.0])
    outputs = [layers.Dense(4, name="second")(merged), layers.Dense(4, name="first")(merged)]
    return tf_keras.Model([zeta, alpha], outputs, name="two")


def recurrent() -> Any:
    import tf_keras

    inputs = tf_keras.Input((5, 3), name="sequence")
    return tf_keras.Model(inputs, tf_keras.layers.SimpleRNN(2, name="label")(inputs))


@pytest.mark.parametrize("make", [sequential, nested, two_inputs, recurrent])
def test_models_of_every_shape_are_rebuilt_and_compute_the_same(make: Any, tmp_path: Path) -> None:
    model = make()
    source = opened(models.keras_saved_model(model, tmp_path / "model"))
    assert source.model is not None, source.why_graph
    samples = {
        tensor.name: RANDOM.normal(size=(6, *tensor.shape[1:])).astype(np.float32) for tensor in source.contract.inputs
    }
    given = [samples[tensor.name] for tensor in source.contract.inputs]
    expected = model(given if len(given) > 1 else given[0], training=False)
    wanted_outputs = expected if isinstance(expected, list) else [expected]
    for found, wanted in zip(source.predict(samples).values(), wanted_outputs, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    frozen = [
        [path for path, layer in walk(each) if layer.weights and not layer.trainable] for each in (source.keras, model)
    ]
    assert frozen[0] == frozen[1]


def test_any_signature_that_is_the_forward_pass_is_the_keras_model(served: Path) -> None:
    source = opened(served, "plain")
    assert source.keras is not None
    assert source.contract.signature == "plain"
    assert [tensor.name for tensor in (*source.contract.inputs, *source.contract.outputs)] == ["x", "y"]
    x = RANDOM.normal(size=(5, 4)).astype(np.float32)
    graph = opened(served, "plain", as_graph=True)
    assert graph.model is None
    np.testing.assert_allclose(source.predict({"x": x})["y"], graph.predict({"x": x})["y"], rtol=1e-5)


def test_metadata_in_the_graph_as_tensorflow_2_0_to_2_4_wrote_it_are_read_too(served: Path, tmp_path: Path) -> None:
    texts = dict(keras_metadata.nodes(served))
    path = Path(shutil.copytree(served, tmp_path / "old"))
    (path / "keras_metadata.pb").unlink()
    message = saved_model_source.read_proto(path)
    objects = saved_model_source.meta_graph(message).object_graph_def.nodes
    for index, text in texts.items():
        objects[index].user_object.metadata = text
    (path / "saved_model.pb").write_bytes(message.SerializeToString())
    assert opened(path, "plain").keras.get_layer("hidden").units == 3


# What stays a graph


@pytest.mark.parametrize(
    ("signature", "why"),
    [
        ("scaled", "signature scaled is not the model's own forward pass: output y differs by"),
        ("cut", r"output y is float32 \[-1, 3\] in signature cut, float32 \[-1, 2\] in the model"),
        ("single", r"input x is float32 \[1, 4\] in signature single, float32 \[-1, 4\] in the model"),
        ("bytes", r"input x is uint8 \[-1, 4\] in signature bytes, float32 \[-1, 4\] in the model"),
        ("renamed", "the inputs of signature renamed are pixels, those of the model x"),
        ("two", "the outputs of signature two are copy, y, those of the model y"),
    ],
)
def test_a_signature_that_is_not_the_forward_pass_stays_a_graph_and_says_why(
    served: Path, signature: str, why: str
) -> None:
    source = opened(served, signature)
    assert source.model is None
    assert source.contract.signature == signature
    assert source.notes[-1].startswith("taken as a graph, not as the Keras model that was saved: ")
    with pytest.raises(SqueezeflowError, match=rf"prune trains Keras models.*without layers \({why}") as caught:
        bridge.trainable(source, "prune")
    assert caught.value.reason == "UNSUPPORTED_INPUT"


def test_conversion_is_true_to_the_signature_that_was_asked_for(served: Path, tmp_path: Path) -> None:
    x = RANDOM.normal(size=(1, 4)).astype(np.float32)
    for signature in ("plain", "scaled"):
        (tmp_path / signature).mkdir()
        inputs = StepInputs({"model": ArtifactPath(SAVED_MODEL, served)}, tmp_path / signature, signature=signature)
        made = convert.run(technique_pb2.Convert(), inputs, lambda *_, **__: None)
        assert [tensor.name for tensor in made.contract.inputs] == ["x"]
        assert made.metrics["max_abs_diff"].value < 1e-5
    plain, scaled = (opened(served, name).predict({"x": x})["y"] for name in ("plain", "scaled"))
    assert np.abs(plain - scaled).max() > 1e-2


@pytest.fixture(scope="module")
def custom(folder: Path) -> Path:
    """Writes a model with a layer of the author's own, registered, and another without a configuration."""
    import tensorflow as tf
    import tf_keras

    @tf_keras.utils.register_keras_serializable("Mine")
    class Doubled(tf_keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return tf.nn.relu(x) * 2.0

    class Shifted(tf_keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, by: float, **options: Any) -> None:
            super().__init__(**options)
            self.by = by

        def call(self, x: Any) -> Any:
            return x + self.by

    x = tf_keras.Input((4,), name="x")
    hidden = Shifted(3.0, name="shifted")(Doubled(name="doubled")(x))
    return models.keras_saved_model(tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(hidden)), folder / "custom")


def test_a_layer_of_the_authors_own_is_never_built_and_is_named_where_something_would_train_it(custom: Path) -> None:
    assert scan.scan(ArtifactPath(SAVED_MODEL, custom)) == []
    source = opened(custom)
    assert source.model is None
    with pytest.raises(SqueezeflowError, match=r"layer doubled: custom object .*Doubled; layer shifted: custom object"):
        bridge.trainable(source, "train_quantized")
    found = describe.description_of(ArtifactPath(SAVED_MODEL, custom))
    assert found.format == "SavedModel"
    assert not found.layers
    told = {technique.technique: technique for technique in found.techniques}
    assert told["convert"].supported
    assert "layer doubled: custom object" in told["train_quantized"].reason
    assert told["prune"].reason.endswith("or set one_shot")


def test_a_published_model_with_a_layer_of_its_own_says_which_by_the_metadata_in_its_graph() -> None:
    graph = saved_model_source.meta_graph(saved_model_source.read_proto(BASIC_PITCH))
    root = keras_metadata.root_of(BASIC_PITCH, graph)
    assert root is not None
    assert root.config["class_name"] == "Functional"
    assert "layer flatten_audio_ch_1: custom object FlattenAudioCh" in keras_saved_model.why_unknown(root)


def test_a_subclassed_model_stays_a_graph(tmp_path: Path) -> None:
    import tf_keras

    class Own(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = tf_keras.layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Own()
    model.predict(np.ones((1, 4), np.float32), verbose=0)
    source = opened(models.keras_saved_model(model, tmp_path / "own"))
    assert source.model is None
    assert "custom object Own" in source.why_graph


def test_what_was_exported_has_no_metadata_and_is_a_graph_as_ever(cnn: Path, tmp_path: Path) -> None:
    made = export.run(
        technique_pb2.Export(format=technique_pb2.Export.FORMAT_SAVED_MODEL),
        StepInputs({"model": ArtifactPath(SAVED_MODEL, cnn)}, tmp_path),
        lambda *_, **__: None,
    )
    assert made.artifact is not None
    for path in (made.artifact.path, models.save(small(), tmp_path / "exported")):
        assert not (path / "keras_metadata.pb").exists()
        source = opened(path)
        assert (source.model, source.why_graph, source.format) == (None, "", "SavedModel")


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [("units", 7, "tf_keras cannot rebuild it"), ("activation", "mine", "tf_keras cannot rebuild it")],
)
def test_metadata_that_do_not_fit_the_weights_leave_the_graph(
    served: Path, tmp_path: Path, field: str, value: Any, why: str
) -> None:
    def change(_: int, node: dict[str, Any]) -> None:
        for layer in node["config"].get("layers", ()):
            if layer["config"]["name"] == "hidden":
                layer["config"][field] = value

    source = opened(models.edit_metadata(served, tmp_path / "edited", change), "plain")
    assert source.model is None
    assert source.why_graph.startswith(why)


def test_metadata_of_another_model_are_found_out_by_the_outputs(served: Path, tmp_path: Path) -> None:
    def change(_: int, node: dict[str, Any]) -> None:
        for layer in node["config"].get("layers", ()):
            if layer["config"]["name"] == "hidden":
                layer["config"]["activation"] = "tanh"

    source = opened(models.edit_metadata(served, tmp_path / "edited", change), "plain")
    assert "is not the model's own forward pass" in source.why_graph


# Code


def payload(marker: Path) -> dict[str, Any]:
    """Gives the configuration of a Lambda layer that writes `marker` when it is called."""
    import tf_keras

    layer = tf_keras.layers.Lambda(eval(f"lambda x: (open({str(marker)!r}, 'a').write('ran'), x * 2.0)[1]"))
    return {"class_name": "Lambda", "config": {**layer.get_config(), "name": "payload"}}


@pytest.fixture
def evil(served: Path, tmp_path: Path) -> Path:
    """Writes a clean graph whose metadata put a Lambda layer in the place of an honest one."""
    lambda_layer = payload(tmp_path / "marker")

    def change(node_id: int, node: dict[str, Any]) -> None:
        if node_id == 0:
            layer = next(layer for layer in node["config"]["layers"] if layer["config"]["name"] == "hidden")
            layer.update(lambda_layer)
            layer["name"] = "hidden"

    return models.edit_metadata(served, tmp_path / "evil", change)


def test_a_lambda_in_the_metadata_alone_is_refused_by_name_and_nothing_of_it_runs(evil: Path, tmp_path: Path) -> None:
    with pytest.raises(SqueezeflowError, match="layer payload: Lambda carries or loads code") as caught:
        opened(evil, "plain")
    assert caught.value.reason == "CODE_IN_MODEL"
    found = describe.description_of(ArtifactPath(SAVED_MODEL, evil), "plain")
    assert list(found.findings) == ["layer payload: Lambda carries or loads code"]
    assert not any(technique.supported for technique in found.techniques)
    # Nor does it run where the scan was left out.
    graph = saved_model_source.open_saved_model(evil, "plain")
    assert keras_saved_model.as_keras(graph).model is None
    assert not (tmp_path / "marker").exists()


def test_the_lambda_does_run_where_nothing_scans_it(evil: Path, tmp_path: Path) -> None:
    import tf_keras
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    root = keras_metadata.root_of(evil, saved_model_source.meta_graph(saved_model_source.read_proto(evil)))
    assert root is not None
    with SafeModeScope(False):
        tf_keras.models.model_from_config(keras_metadata.decoded(root.config))
    assert (tmp_path / "marker").read_text() == "ran"


def test_a_function_of_a_module_in_the_metadata_is_never_imported(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    gadget = models.gadget(tmp_path, tmp_path / "marker")

    def change(_: int, node: dict[str, Any]) -> None:
        for layer in node["config"].get("layers", ()):
            if layer["config"]["name"] == "hidden":
                layer["config"]["activation"] = gadget

    path = models.edit_metadata(served, tmp_path / "gadget", change)
    assert "gadget_function.call is not part of Keras" in opened(path, "plain").why_graph
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(("bound", "says"), [("MAX_CONFIG", "more than 3 bytes"), ("MAX_NODES", "at most 3 are taken")])
def test_metadata_without_end_are_malformed(
    served: Path, bound: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_metadata, bound, 3)
    with pytest.raises(SqueezeflowError, match=says) as caught:
        opened(served, "plain")
    assert caught.value.reason == "MALFORMED_MODEL"
