"""A broken output is told with the tensor and the layer in which it begins; in files and in models read back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath, StepInputs
from squeezeflow.modelkit import conversion, keras_source, proof
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.quantizer.ai_edge_source import open_tflite
from squeezeflow.v1 import artifact_pb2

KERAS, SAVED_MODEL = artifact_pb2.ARTIFACT_KIND_KERAS, artifact_pb2.ARTIFACT_KIND_SAVED_MODEL


def negated(model: Any, layer: str) -> Any:
    """Turns the kernel of one layer around."""
    kernel, *rest = model.get_layer(layer).get_weights()
    model.get_layer(layer).set_weights([-kernel, *rest])
    return model


def filled(model: Any, layer: str, value: float) -> Any:
    kernel, *rest = model.get_layer(layer).get_weights()
    model.get_layer(layer).set_weights([np.full_like(kernel, value), *rest])
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("locating")


@pytest.fixture(scope="module")
def cnn() -> Source:
    return keras_source.of_model(models.tf_keras_cnn())


@pytest.fixture(scope="module")
def wrong(folder: Path) -> Callable[[str], Path]:
    """Files of the CNN with the kernel of `conv_2` turned around, by mode."""
    source = keras_source.of_model(negated(models.tf_keras_cnn(), "conv_2"))
    images = np.random.default_rng(0).uniform(-1, 1, (20, 28, 28, 1)).astype(np.float32)

    def file(mode: str) -> Path:
        path = folder / f"wrong_{mode}.tflite"
        if not path.exists():
            convert(source, path, mode, images)
        return path

    return file


def convert(source: Source, path: Path, mode: str = "float32", images: np.ndarray | None = None) -> Path:
    import tensorflow as tf

    converter = source.converter()
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if images is not None and mode == "int8":
        converter.representative_dataset = lambda: ({"image": image[np.newaxis]} for image in images)
    conversion.convert(converter, path)
    return path


def refusal(prove: Callable[[], object]) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        prove()
    return caught.value


def proved(source: Source, path: Path, mode: str = "float32", *, least: float = 40.0) -> SqueezeflowError:
    return refusal(lambda: proof.prove(source, path, bound=None, mode=mode, min_sqnr_db=least))


@pytest.mark.parametrize("mode", ["float32", "float16", "dynamic", "int8"])
def test_the_layer_after_which_a_file_is_off_is_named_with_its_tensor(
    mode: str, cnn: Source, wrong: Callable[[str], Path]
) -> None:
    error = proved(cnn, wrong(mode), mode)
    assert error.reason == "OUTPUT_MISMATCH"
    assert re.search(r"error arises in tensor \S*conv_2\S* of CONV_2D in layer conv_2 \(relative error", error.message)


def test_the_layer_of_a_keras_3_model_is_named(folder: Path) -> None:
    path = models.save(models.keras3_cnn(), folder / "keras3.keras")
    other = models.save(negated(models.keras3_cnn(), "conv_2"), folder / "keras3_wrong.keras")
    wrong = open_source(ArtifactPath(KERAS, other))
    error = proved(open_source(ArtifactPath(KERAS, path)), convert(wrong, folder / "keras3.tflite"))
    assert re.search(r"arises in tensor \S*conv_2\S* of CONV_2D in layer conv_2", error.message)


def test_the_tensor_of_a_saved_model_is_named(folder: Path) -> None:
    source = open_source(ArtifactPath(SAVED_MODEL, dense_graph(folder / "graph")))
    other = open_source(ArtifactPath(SAVED_MODEL, dense_graph(folder / "graph_wrong", sign=-1)))
    error = proved(source, convert(other, folder / "graph.tflite"))
    assert re.search(r"arises in tensor \S*second\S* of FULLY_CONNECTED", error.message)


def dense_graph(path: Path, *, sign: int = 1) -> Path:
    """Writes a tf.function of three matrix products, the second with a sign."""
    import tensorflow as tf

    random = np.random.default_rng(3)
    kernels = [tf.Variable(random.normal(size=(8, 8)).astype("f") * s) for s in (1, sign, 1)]

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, "x")])  # type: ignore[untyped-decorator]
    def call(x: Any) -> Any:
        for name, kernel in zip(("first", "second", "third"), kernels, strict=True):
            with tf.name_scope(name):
                x = tf.tanh(x @ kernel)
        return {"y": x}

    module = tf.Module()
    module.kernels = kernels
    tf.saved_model.save(module, str(path), signatures=call)
    return path


def test_a_float_file_is_compared_with_by_the_names_of_its_tensors(
    cnn: Source, wrong: Callable[[str], Path], folder: Path
) -> None:
    path = convert(cnn, folder / "float.tflite")
    model = ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, path)
    source = open_tflite(StepInputs({"model": model}, folder))
    error = proved(source, wrong("dynamic"), "int8")  # type: ignore[arg-type]
    assert "in layer conv_2" in error.message


def test_a_weight_that_is_not_finite_is_named_with_its_layer_also_where_it_is_unpacked(folder: Path) -> None:
    source = keras_source.of_model(filled(models.tf_keras_cnn(), "probabilities", np.nan))
    error = proved(source, convert(source, folder / "nan16.tflite", "float16"), "float16")
    assert error.reason == "NON_FINITE_OUTPUT"
    place = r"the first NaN is in tensor \S+ of FULLY_CONNECTED in layer probabilities"
    assert re.search(place + r", which takes the float16 constant \S+ that holds NaN", error.message)


def test_a_nan_of_the_source_is_named_and_told_to_be_the_sources(folder: Path) -> None:
    source = keras_source.of_model(filled(models.tf_keras_cnn(), "probabilities", np.nan))
    error = proved(source, convert(source, folder / "nan.tflite"))
    assert re.search(
        r"the first NaN is in tensor \S*probabilities\S* of FULLY_CONNECTED in layer probabilities", error.message
    )
    assert "the source's output is not finite either" in error.message


def test_an_output_that_no_longer_varies_is_told_with_the_layer_that_stills_it(cnn: Source, folder: Path) -> None:
    model = models.tf_keras_cnn()
    model.get_layer("dense").set_weights([np.full((400, 32), 1e-9), np.ones(32)])
    source = keras_source.of_model(model)
    error = proved(cnn, convert(source, folder / "still.tflite"), "int8", least=-100.0)
    assert error.reason == "INVARIANT_BROKEN"
    assert re.search(r"the same from tensor \S*dense\S* of FULLY_CONNECTED in layer dense on", error.message)


def test_a_model_read_back_is_told_by_its_operations(cnn: Source) -> None:
    nan = keras_source.of_model(filled(models.tf_keras_cnn(), "probabilities", np.nan))
    error = refusal(lambda: proof.prove_same(cnn, nan, bound=None))
    assert re.search(
        r"the first NaN is in tensor \S*probabilities/MatMul of MatMul in layer probabilities", error.message
    )
    off = keras_source.of_model(negated(models.tf_keras_cnn(), "conv_2"))
    error = refusal(lambda: proof.prove_same(cnn, off, bound=None))
    assert "of Conv2D in layer conv_2" in error.message


def test_what_cannot_be_told_does_not_hide_the_refusal(
    cnn: Source, wrong: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squeezeflow.core.litert.tracing.TRACE_BYTES", 10)
    error = proved(cnn, wrong("float32"))
    assert error.reason == "OUTPUT_MISMATCH"
    assert "the layer cannot be told (its activations take" in error.message
