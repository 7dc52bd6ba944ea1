"""Models of every kind are loaded under their own names, predict, and convert; damaged ones are refused by type."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import keras_source, serving
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.v1 import artifact_pb2

KINDS = {
    ".keras": artifact_pb2.ARTIFACT_KIND_KERAS,
    ".h5": artifact_pb2.ARTIFACT_KIND_HDF5,
    ".hdf5": artifact_pb2.ARTIFACT_KIND_HDF5,
    ".tflite": artifact_pb2.ARTIFACT_KIND_TFLITE,
    "": artifact_pb2.ARTIFACT_KIND_SAVED_MODEL,
}
DATA = Path(__file__).parents[2] / "data" / "models"


def opened(path: Path, signature: str = "") -> Source:
    return open_source(ArtifactPath(KINDS[path.suffix], path), signature)


def refusal(path: Path, signature: str = "") -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        opened(path, signature)
    return caught.value


def shapes(tensors: Any) -> list[tuple[str, list[int], str]]:
    return [(tensor.name, list(tensor.shape), tensor.dtype) for tensor in tensors]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def keras_path(folder: Path) -> Path:
    return models.tf_keras_file(folder, compiled=True)


@pytest.fixture(scope="module")
def hdf5_path(folder: Path) -> Path:
    return models.tf_keras_file(folder, name="model.h5", compiled=True)


IMAGES = np.random.default_rng(5).uniform(size=(3, 28, 28, 1)).astype(np.float32)


def test_a_tf_keras_file_keeps_its_names_and_can_be_trained(keras_path: Path) -> None:
    source = opened(keras_path)
    assert shapes(source.contract.inputs) == [("image", [-1, 28, 28, 1], "float32")]
    assert shapes(source.contract.outputs) == [("probabilities", [-1, 10], "float32")]
    assert source.contract.outputs[0].meaning == "probabilities"
    assert (source.format, source.written_by.split()[0]) == ("tf_keras .keras", "tf_keras")
    assert source.keras is not None
    assert source.keras is source.model


def test_hdf5_and_keras_files_of_one_model_predict_the_same(keras_path: Path, hdf5_path: Path) -> None:
    first, second = opened(keras_path).predict({"image": IMAGES}), opened(hdf5_path).predict({"image": IMAGES})
    assert opened(hdf5_path).format == "Keras HDF5"
    assert first["probabilities"].shape == (3, 10)
    np.testing.assert_array_equal(first["probabilities"], second["probabilities"])


@pytest.mark.parametrize("path", ["keras_path", "hdf5_path"])
def test_how_a_model_was_compiled_is_read_without_compiling_it(path: str, request: pytest.FixtureRequest) -> None:
    source = opened(request.getfixturevalue(path))
    compiled = source.compile_config
    assert (compiled.loss, compiled.from_logits, compiled.optimizer) == (
        "sparse_categorical_crossentropy",
        False,
        "adam",
    )
    assert compiled.learning_rate == pytest.approx(0.002)
    assert source.keras.optimizer is None


@pytest.mark.parametrize("name", ["k3.keras", "k3.h5"])
def test_a_keras_3_file_is_read_by_keras_3_and_is_no_tf_keras_model(name: str, tmp_path: Path) -> None:
    path = models.keras3_file(tmp_path, name=name)
    source = opened(path)
    assert source.keras is None
    assert type(source.model).__module__.startswith("keras.")
    assert source.written_by.startswith("keras 3.")
    assert shapes(source.contract.inputs) == [("image", [-1, 28, 28, 1], "float32")]
    outputs = source.predict({"image": IMAGES})["probabilities"]
    np.testing.assert_allclose(outputs, np.asarray(source.model(IMAGES, training=False)), atol=1e-6)


def test_a_file_of_keras_2_0_loads_with_its_compile_settings() -> None:
    source = opened(DATA / "fer" / "emotion_model.hdf5")
    assert source.written_by == "keras 2.0.5"
    assert shapes(source.contract.outputs) == [("predictions", [-1, 7], "float32")]
    assert source.compile_config.loss == "categorical_crossentropy"
    assert source.compile_config.learning_rate == pytest.approx(1e-4)


def test_the_same_weights_saved_by_keras_2_and_3_predict_the_same() -> None:
    faces = np.random.default_rng(2).uniform(-1, 1, (2, 64, 64, 1)).astype(np.float32)
    old, new = opened(DATA / "fer" / "emotion_model.hdf5"), opened(DATA / "fer" / "emotion_model_keras3.keras")
    expected = old.predict({"input_1": faces})["predictions"]
    np.testing.assert_allclose(new.predict({"input_1": faces})["predictions"], expected, atol=1e-5)


def test_a_file_that_its_own_library_cannot_read_is_read_by_the_other(
    keras_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = keras_source.read_file(keras_path)
    wrong = keras_source.KerasFile(facts.format, "3.0.0", facts.compiled, keras3=True)
    model, keras3, notes = keras_source.load(keras_path, wrong)
    assert not keras3
    assert type(model).__module__.startswith("tf_keras.")
    assert notes == ("read with tf_keras: the library that wrote it could not read it here",)


def test_inputs_and_outputs_keep_the_order_of_the_model_and_bind_by_name(tmp_path: Path) -> None:
    for path in (models.two_inputs_file(tmp_path), models.keras3_two_outputs(tmp_path)):
        source = opened(path)
        assert [tensor.name for tensor in source.contract.inputs] == ["zeta", "alpha"]
        assert [tensor.name for tensor in source.contract.outputs] == ["second", "first"]
        zeta, alpha = np.ones((2, 6), np.float32), np.zeros((2, 6), np.float32)
        expected = source.model([zeta, alpha])
        found = source.predict({"alpha": alpha, "zeta": zeta})
        np.testing.assert_allclose(found["second"], np.asarray(expected[0]), atol=1e-6)
        np.testing.assert_allclose(found["first"], np.asarray(expected[1]), atol=1e-6)


def test_names_that_no_signature_can_carry_stay_in_the_contract(tmp_path: Path) -> None:
    import tf_keras

    inputs = tf_keras.Input((4,), name="my.input-1")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="out.1")(inputs))
    source = keras_source.of_model(model)
    assert source.signature_inputs == {"my.input-1": "input_0"}
    assert source.signature_outputs == {"out.1": "output_0"}
    assert source.predict({"my.input-1": np.zeros((2, 4), np.float32)})["out.1"].shape == (2, 2)


def test_two_outputs_of_one_layer_get_two_names(tmp_path: Path) -> None:
    import tf_keras

    dense = tf_keras.layers.Dense(2, name="shared")
    first, second = tf_keras.Input((4,), name="a"), tf_keras.Input((4,), name="b")
    source = keras_source.of_model(tf_keras.Model([first, second], [dense(first), dense(second)]))
    assert [tensor.name for tensor in source.contract.outputs] == ["shared", "shared_1"]


def test_a_recurrent_model_with_a_free_batch_is_fixed_to_batch_1_and_says_so(tmp_path: Path) -> None:
    source = opened(models.recurrent_file(tmp_path))
    assert shapes(source.contract.inputs) == [("sequence", [1, 12, 3], "float32")]
    assert any("batch is fixed to 1" in note and "cell" in note for note in source.notes)
    sequences = np.random.default_rng(0).normal(size=(5, 12, 3)).astype(np.float32)
    expected = source.model(sequences, training=False)
    np.testing.assert_allclose(source.predict({"sequence": sequences})["label"], expected, atol=1e-6)


def test_a_sequential_model_without_an_input_shape_is_refused(tmp_path: Path) -> None:
    import tf_keras

    tf_keras.Sequential([tf_keras.layers.Dense(2)]).save(str(tmp_path / "model.keras"))
    error = refusal(tmp_path / "model.keras")
    assert error.reason == "UNSUPPORTED_INPUT"
    assert "Input layer" in error.message


def test_text_inputs_of_a_keras_model_are_refused(tmp_path: Path) -> None:
    import tf_keras

    inputs = tf_keras.Input((1,), dtype="string", name="words")
    lookup = tf_keras.layers.StringLookup(vocabulary=["a", "b"])
    tf_keras.Model(inputs, lookup(inputs)).save(str(tmp_path / "model.keras"))
    error = refusal(tmp_path / "model.keras")
    assert error.reason == "UNSUPPORTED_INPUT"
    assert "words is text" in error.message


# SavedModels


def test_a_saved_model_with_one_signature_needs_no_choice(tmp_path: Path) -> None:
    source = opened(models.gives_nan(tmp_path))
    assert source.contract.signature == "serving_default"
    assert source.keras is None
    assert source.model is None


def test_serving_default_is_taken_where_there_are_several_and_nothing_is_asked_for(tmp_path: Path) -> None:
    path = models.saved_model(tmp_path)
    assert opened(path).contract.signature == "serving_default"
    assert opened(path, "serve").contract.signature == "serve"


@pytest.mark.parametrize("wanted", ["", "predict"])
def test_a_signature_that_cannot_be_told_or_is_not_there_is_refused_with_those_there_are(
    wanted: str, tmp_path: Path
) -> None:
    error = refusal(models.two_signatures(tmp_path), wanted)
    assert error.reason == "INVALID_PARAMETER"
    assert "scale, swap" in error.message
    assert error.fields[0][0] == "model.signature"


def test_each_signature_has_its_own_contract_and_predicts(tmp_path: Path) -> None:
    source = opened(models.two_signatures(tmp_path), "swap")
    assert [tensor.name for tensor in source.contract.inputs] == ["a", "b"]
    assert [tensor.name for tensor in source.contract.outputs] == ["difference", "total"]
    a, b = np.full((2, 4), 10, np.float32), np.ones((2, 4), np.float32)
    outputs = source.predict({"a": a, "b": b})
    np.testing.assert_array_equal(outputs["total"], a + 3 * b)
    np.testing.assert_array_equal(outputs["difference"], a - 3 * b)


def test_a_signature_with_text_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    error = refusal(models.string_input(tmp_path))
    assert error.reason == "UNSUPPORTED_INPUT"
    assert "text is text" in error.message


def test_a_signature_of_a_keras_file_is_refused(keras_path: Path) -> None:
    error = refusal(keras_path, "serving_default")
    assert error.reason == "INVALID_PARAMETER"
    assert "leave signature empty" in error.message


def test_a_tflite_file_is_no_source() -> None:
    error = refusal(DATA / "fer" / "emotion_model_quantized.tflite")
    assert error.reason == "UNSUPPORTED_INPUT"
    assert "TFLITE" in error.message


# Damage


def test_a_flipped_bit_in_a_keras_archive_is_found_by_its_crc(keras_path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(keras_path) as archive:
        weights = archive.getinfo("model.weights.h5")
    offset = weights.header_offset + weights.file_size // 2
    error = refusal(models.damaged(keras_path, tmp_path / "flipped.keras", offset=offset))
    assert error.reason == "MALFORMED_MODEL"
    assert "CRC" in error.message


@pytest.mark.parametrize("path", ["keras_path", "hdf5_path"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_empty_and_truncated_files_are_malformed(
    path: str, keep: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    whole = request.getfixturevalue(path)
    error = refusal(models.truncated(whole, tmp_path / f"cut{whole.suffix}", keep=keep))
    assert error.reason == "MALFORMED_MODEL"
    assert "\n" not in error.message


def test_bytes_that_are_something_else_are_malformed(tmp_path: Path) -> None:
    for name in ("junk.keras", "junk.h5"):
        (tmp_path / name).write_bytes(b"\x00\x01" * 5000)
        assert refusal(tmp_path / name).reason == "MALFORMED_MODEL"
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "saved_model.pb").write_bytes(b"\xff" * 5000)
    assert refusal(tmp_path / "junk").reason == "MALFORMED_MODEL"


def test_weights_without_a_model_are_malformed_and_say_what_to_save(tmp_path: Path) -> None:
    models.tf_keras_cnn().save_weights(str(tmp_path / "only.weights.h5"))
    error = refusal(tmp_path / "only.weights.h5")
    assert error.reason == "MALFORMED_MODEL"
    assert "save the whole model" in error.message


def test_a_structure_that_does_not_load_is_malformed_not_a_stack_trace(keras_path: Path, tmp_path: Path) -> None:
    def shrink(config: dict[str, Any]) -> None:
        layer = next(item for item in config["config"]["layers"] if item["config"]["name"] == "dense")
        layer["config"]["units"] = 7

    error = refusal(models.edit_config(keras_path, tmp_path / "odd.keras", shrink))
    assert error.reason == "MALFORMED_MODEL"
    assert "does not load" in error.message


def test_a_saved_model_without_its_variables_is_malformed(tmp_path: Path) -> None:
    path = models.two_signatures(tmp_path)
    for file in (path / "variables").iterdir():
        file.unlink()
    assert refusal(path, "scale").reason == "MALFORMED_MODEL"


# Batches


def test_a_fixed_batch_is_filled_up_and_cut_off_again() -> None:
    seen = []

    def double(arrays: list[np.ndarray]) -> list[np.ndarray]:
        seen.append(len(arrays[0]))
        return [arrays[0] * 2]

    values = np.arange(5, dtype=np.float32)[:, None]
    (found,) = serving.in_batches(double, [values], 2)
    np.testing.assert_array_equal(found, values * 2)
    assert seen == [2, 2, 2]
