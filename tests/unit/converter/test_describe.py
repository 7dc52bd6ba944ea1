"""Descriptions say what a model is and what each technique would do with it, and run nothing of it."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from tests import models

from squeezeflow.converter import describe
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath
from squeezeflow.v1 import artifact_pb2, model_pb2

DATA = Path(__file__).parents[2] / "data" / "models"
KINDS = {
    ".keras": artifact_pb2.ARTIFACT_KIND_KERAS,
    ".h5": artifact_pb2.ARTIFACT_KIND_HDF5,
    ".hdf5": artifact_pb2.ARTIFACT_KIND_HDF5,
    ".tflite": artifact_pb2.ARTIFACT_KIND_TFLITE,
    ".npz": artifact_pb2.ARTIFACT_KIND_DATASET,
    "": artifact_pb2.ARTIFACT_KIND_SAVED_MODEL,
}


def described(path: Path, signature: str = "") -> model_pb2.ModelDescription:
    return describe.description_of(ArtifactPath(KINDS[path.suffix], path), signature)


def reasons(techniques: object) -> dict[str, str]:
    return {technique.technique: technique.reason for technique in techniques}  # type: ignore[attr-defined]


def test_a_keras_model_is_described_layer_by_layer(tmp_path: Path) -> None:
    found = described(models.tf_keras_file(tmp_path))
    assert found.format == "tf_keras .keras"
    assert found.written_by.startswith("tf_keras 2.")
    assert found.parameters == 14514
    assert [tensor.name for tensor in found.contract.inputs] == ["image"]
    layers = {layer.name: layer for layer in found.layers}
    assert (layers["conv_2"].class_name, layers["conv_2"].parameters) == ("Conv2D", 1168)
    assert list(layers["conv_2"].output_shape) == [-1, 5, 5, 16]
    assert reasons(layers["dense"].techniques) == dict.fromkeys(
        ("convert", "quantize", "train_quantized", "prune", "cluster"), ""
    )
    left = reasons(layers["depthwise"].techniques)
    assert "depthwise" in left["prune"]
    assert "depthwise" in left["cluster"]
    assert left["train_quantized"] == ""
    assert all(technique.supported for technique in found.techniques)
    assert found.sizes.raw_bytes == (tmp_path / "model.keras").stat().st_size
    assert not found.findings


def test_every_technique_takes_a_keras_3_model_that_can_be_rebuilt(tmp_path: Path) -> None:
    found = described(models.keras3_file(tmp_path))
    assert found.format == "Keras 3 .keras"
    assert set(reasons(found.techniques)) == {"convert", "export", "quantize", "train_quantized", "prune", "cluster"}
    assert all(technique.supported for technique in found.techniques)


def test_a_keras_3_model_that_cannot_be_rebuilt_is_not_trained_and_the_layer_is_named(tmp_path: Path) -> None:
    import keras

    inputs = keras.Input((4,), name="values")
    outputs = keras.layers.Dense(2)(keras.layers.SpectralNormalization(keras.layers.Dense(3), name="spectral")(inputs))
    path = tmp_path / "spectral.keras"
    keras.Model(inputs, outputs).save(path)
    found = described(path)
    supported = {technique.technique: technique.supported for technique in found.techniques}
    assert supported == {
        **dict.fromkeys(("convert", "export", "quantize"), True),
        **dict.fromkeys(("train_quantized", "prune", "cluster"), False),
    }
    assert "spectral" in reasons(found.techniques)["prune"]


def test_a_saved_model_says_what_works_at_once_without_layers(tmp_path: Path) -> None:
    found = reasons(described(models.saved_model(tmp_path)).techniques)
    assert "one_shot" in found["prune"]
    assert "one_shot" in found["cluster"]
    assert "one_shot" not in found["train_quantized"]


def test_a_layer_that_int8_cannot_take_says_so(tmp_path: Path) -> None:
    import tf_keras

    found = described(models.recurrent_file(tmp_path, cell="GRU"))
    layer = next(layer for layer in found.layers if layer.name == "cell")
    assert reasons(layer.techniques)["quantize"] == ""
    assert reasons(layer.techniques)["prune"] == ""
    free = tf_keras.Sequential([tf_keras.Input((None, 3)), tf_keras.layers.GRU(5, name="cell")])
    found = described(models.save(free, tmp_path / "free.keras"))
    (layer,) = (layer for layer in found.layers if layer.name == "cell")
    assert "kills the converter; its number of steps is not known" in reasons(layer.techniques)["quantize"]


def test_an_old_hdf5_file_is_described() -> None:
    found = described(DATA / "fer" / "emotion_model.hdf5")
    assert (found.format, found.written_by, found.parameters) == ("Keras HDF5", "keras 2.0.5", 58423)
    assert sum(layer.class_name == "SeparableConv2D" for layer in found.layers) == 8


def test_a_text_model_is_described_though_nothing_can_be_done_with_it(tmp_path: Path) -> None:
    import tf_keras

    inputs = tf_keras.Input((1,), dtype="string", name="words")
    lookup = tf_keras.layers.StringLookup(vocabulary=["a", "b"], name="lookup")
    tf_keras.Model(inputs, lookup(inputs)).save(str(tmp_path / "model.keras"))
    found = described(tmp_path / "model.keras")
    assert found.contract.inputs[0].dtype == "string"
    assert "text" in reasons(found.techniques)["convert"]
    assert [layer.class_name for layer in found.layers] == ["InputLayer", "StringLookup"]


def test_a_saved_model_is_described_without_loading_it(tmp_path: Path) -> None:
    path = models.two_signatures(tmp_path)
    undecided = described(path)
    assert list(undecided.signatures) == ["scale", "swap"]
    assert "scale, swap" in reasons(undecided.techniques)["convert"]
    assert undecided.parameters == 4
    chosen = described(path, "swap")
    assert [tensor.name for tensor in chosen.contract.outputs] == ["difference", "total"]
    assert reasons(chosen.techniques)["convert"] == ""
    assert "without layers" in reasons(chosen.techniques)["prune"]
    with pytest.raises(SqueezeflowError) as caught:
        described(path, "predict")
    assert caught.value.reason == "INVALID_PARAMETER"


@pytest.mark.parametrize(
    "make", [models.lambda_layer, models.gadget_config, models.writes_file_at_load, models.calls_python]
)
def test_a_model_with_code_is_described_with_what_was_found_and_not_loaded(
    make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    marker = tmp_path / "marker"
    found = described(make(tmp_path, marker))  # type: ignore[operator]
    assert len(found.findings) == 1
    assert not any(technique.supported for technique in found.techniques)
    assert not found.layers
    assert not marker.exists()


def test_a_tflite_file_is_described_without_tensorflow() -> None:
    path = DATA / "fer" / "emotion_model_quantized.tflite"
    code = f"""
import base64, sys
from squeezeflow.converter.describe import describe
kind, path = {KINDS[".tflite"]}, {str(path)!r}
print(describe({{"artifact": [kind, path], "signature": ""}}, None)["description"])
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = model_pb2.ModelDescription.FromString(base64.b64decode(done.stdout))
    assert found.format == "TFLite"
    assert any(operator.name == "CONV_2D" for operator in found.operators)
    assert any(tensor.dtype == "int8" and len(tensor.scales) > 1 for tensor in found.tensors)
    assert "TFLite already" in reasons(found.techniques)["convert"]
    assert (found.parameters, found.macs, found.arena_peak_bytes) == (56463, 10163392, 534784)
    assert found.operators[1].layer.startswith("conv2d_2_1")
    assert found.operators[1].reason == "weights under 1,024 elements"


def test_damage_is_malformed_and_a_dataset_is_no_model(tmp_path: Path) -> None:
    whole = models.tf_keras_file(tmp_path)
    with pytest.raises(SqueezeflowError) as caught:
        described(models.truncated(whole, tmp_path / "cut.keras"))
    assert caught.value.reason == "MALFORMED_MODEL"
    with pytest.raises(SqueezeflowError) as caught:
        described(models.truncated(DATA / "basic_pitch" / "nmp.tflite", tmp_path / "cut.tflite"))
    assert caught.value.reason == "MALFORMED_MODEL"
    with pytest.raises(SqueezeflowError) as caught:
        described(tmp_path / "data.npz")
    assert caught.value.reason == "UNSUPPORTED_INPUT"
