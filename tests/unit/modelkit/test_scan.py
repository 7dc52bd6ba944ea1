"""What is refused before any load; every sample would write a marker file if anything of it ran."""

from __future__ import annotations

import inspect
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from tests import models

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import keras_names, scan
from squeezeflow.modelkit.scan_archive import scan_archive
from squeezeflow.modelkit.scan_config import scan_config
from squeezeflow.modelkit.source import open_source
from squeezeflow.v1 import artifact_pb2

KERAS, HDF5 = artifact_pb2.ARTIFACT_KIND_KERAS, artifact_pb2.ARTIFACT_KIND_HDF5
SAVED_MODEL = artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
FER = Path(__file__).parents[2] / "data" / "models" / "fer"
BASIC_PITCH = Path(__file__).parents[2] / "data" / "models" / "basic_pitch" / "nmp"


def lambda_hdf5(folder: Path, marker: Path) -> Path:
    return models.lambda_layer(folder, marker, name="lambda.h5")


CARRIERS: list[tuple[Callable[[Path, Path], Path], int, str]] = [
    (models.lambda_layer, KERAS, "layer payload: Lambda"),
    (lambda_hdf5, HDF5, "layer payload: Lambda"),
    (models.gadget_config, KERAS, "gadget_module.Gadget"),
    (models.writes_file_at_load, SAVED_MODEL, "operation WriteFile"),
    (models.calls_python, SAVED_MODEL, "operation PyFunc"),
]


def layer(class_name: str, **config: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": class_name, "config": config, "registered_name": None}


@pytest.mark.parametrize(("make", "kind", "what"), CARRIERS)
def test_a_model_with_code_is_refused_by_name_and_nothing_of_it_runs(
    make: Callable[[Path, Path], Path], kind: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    marker = tmp_path / "marker"
    path = make(tmp_path, marker)
    with pytest.raises(SqueezeflowError) as caught:
        open_source(ArtifactPath(kind, path))
    assert caught.value.reason == "CODE_IN_MODEL"
    assert what in caught.value.message
    assert what in caught.value.metadata["findings"]
    assert not marker.exists()


@pytest.mark.parametrize("make", [models.writes_file_at_load, lambda_hdf5])
def test_the_samples_do_run_code_where_nothing_scans_them(make: Callable[[Path, Path], Path], tmp_path: Path) -> None:
    import tensorflow as tf
    import tf_keras

    marker = tmp_path / "marker"
    path = make(tmp_path, marker)
    tf_keras.models.load_model(path) if path.suffix else tf.saved_model.load(str(path))
    assert marker.exists()


@pytest.mark.parametrize(
    "artifact",
    [
        ArtifactPath(HDF5, FER / "emotion_model.hdf5"),
        ArtifactPath(KERAS, FER / "emotion_model_keras3.keras"),
        ArtifactPath(SAVED_MODEL, BASIC_PITCH),
    ],
    ids=["keras 2.0.5", "keras 3", "tf.function"],
)
def test_real_models_are_clean(artifact: ArtifactPath) -> None:
    assert scan.scan(artifact) == []


def test_a_tflite_file_has_no_place_for_code() -> None:
    tflite = ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, FER / "emotion_model_quantized.tflite")
    assert scan.scan(tflite) == []


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (layer("Lambda", name="f"), "layer f: Lambda carries or loads code"),
        (layer("TFSMLayer", name="f", filepath="/model"), "TFSMLayer"),
        ({"class_name": "__lambda__", "config": {"value": "4wEA"}}, "a Python lambda"),
        ({"class_name": "Custom>Mine", "config": {"name": "m"}}, "custom object Custom>Mine"),
        ({**layer("Dense", name="d"), "registered_name": "mine>Dense"}, "custom object mine>Dense"),
        ({**layer("Dense", name="d"), "module": "keras.utils"}, "custom object keras.utils.Dense"),
        ({**layer("Dense", name="d"), "module": "kerasx.layers"}, "custom object kerasx.layers.Dense"),
        ({"class_name": "function", "module": "os", "config": "system"}, "the function os.system"),
        ({"class_name": "function", "module": "keras.utils", "config": "get_file"}, "keras.utils.get_file"),
        ({"class_name": "function", "module": "builtins", "config": "exec"}, "builtins.exec"),
        ({"class_name": "__typespec__", "module": "os", "spec_name": "system", "config": []}, "os.__typespec__"),
        ({"class_name": ["Dense"], "config": {}}, "not named by text"),
        (layer("StringLookup", name="s", vocabulary="/etc/passwd"), "from the file /etc/passwd"),
        (layer("TFOpLambda", name="w", function="io.write_file"), "the operation tf.io.write_file"),
        (layer("TFOpLambda", name="w", function="py_function"), "the operation tf.py_function"),
    ],
)
def test_a_configuration_may_name_nothing_but_keras(config: dict[str, Any], what: str) -> None:
    found = scan_config(layer("Functional", name="model", layers=[layer("Dense", name="fine"), config]))
    assert len(found) == 1
    assert what in found[0]


def test_an_activation_in_the_middle_of_a_layer_is_seen() -> None:
    gadget = {"class_name": "function", "module": "subprocess", "config": "run"}
    assert scan_config(layer("Dense", name="hidden", activation=gadget)) == [
        "layer hidden: the function subprocess.run is not part of Keras"
    ]


def test_plain_keras_configurations_are_clean() -> None:
    relu = {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"}
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
    operation = {"module": "keras.src.ops.numpy", "class_name": "Multiply", "config": {"name": "multiply"}}
    inner = [
        layer("Dense", name="d", activation=relu, dtype=policy),
        {"class_name": "Conv2D", "config": {"name": "c", "kernel_initializer": {"class_name": "VarianceScaling"}}},
        layer("TFOpLambda", name="times", function="math.multiply"),
        operation,
    ]
    assert scan_config(layer("Functional", name="model", layers=inner)) == []


def test_a_custom_loss_at_the_top_does_not_matter_since_models_are_loaded_uncompiled() -> None:
    assert scan_config({**layer("Sequential", layers=[]), "compile_config": {"loss": {"class_name": "Mine"}}}) == []


def test_a_compile_configuration_inside_of_the_model_does() -> None:
    nested = {**layer("Sequential", name="inner"), "compile_config": {"loss": {"class_name": "Mine", "module": "mine"}}}
    assert scan_config(layer("Sequential", name="outer", layers=[nested])) == ["layer inner: custom object mine.Mine"]


def test_a_configuration_that_nests_without_end_is_a_finding() -> None:
    config: Any = []
    for _ in range(5000):
        config = [config]
    assert scan_config(config) == ["the model: configuration nested deeper than 200"]


def test_every_layer_of_both_libraries_is_allowed_or_refused_on_purpose() -> None:
    import keras
    import tf_keras

    known = keras_names.LAYERS | keras_names.PARTS | keras_names.MODELS | keras_names.CODE_LAYERS
    abstract = {"AbstractRNNCell", "DenseFeatures", "InputSpec", "Layer", "Wrapper"}
    for library in (tf_keras, keras):
        classes = {item.__name__ for _, item in inspect.getmembers(library.layers, inspect.isclass)}
        assert classes - known - abstract == set()


# Archives


def archive(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(SqueezeflowError) as caught:
        scan_archive(path)
    assert caught.value.reason == "MALFORMED_MODEL"
    return caught.value.message


CONFIG = json.dumps(layer("Sequential", layers=[])).encode()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\evil", "C:evil"])
def test_an_archive_that_climbs_is_refused(name: str, tmp_path: Path) -> None:
    assert "climbs" in refused(archive(tmp_path / "m.keras", {"config.json": CONFIG, name: b"x"}))


def test_an_archive_that_inflates_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", CONFIG)
        with file.open("model.weights.h5", "w") as stream:
            for _ in range(300):
                stream.write(bytes(1 << 20))
    assert "inflates to more than" in refused(path)


def test_a_member_that_is_there_twice_is_refused_since_readers_differ_on_which_one_counts(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras", {"config.json": CONFIG})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("config.json", CONFIG)
    assert "twice" in refused(path)


def test_an_archive_without_a_configuration_is_refused(tmp_path: Path) -> None:
    assert "config.json" in refused(archive(tmp_path / "m.keras", {"metadata.json": b"{}"}))


def test_weights_that_link_into_other_files_are_a_finding(tmp_path: Path) -> None:
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/dense/vars/0"] = h5py.ExternalLink("/etc/secret.h5", "/data")
        file.create_dataset("layers/dense/vars/1", (4,), dtype="u1", external=[("/etc/passwd", 0, 4)])
    path = archive(tmp_path / "m.keras", {"config.json": CONFIG, "model.weights.h5": weights.getvalue()})
    found = scan_archive(path)
    assert len(found) == 2
    assert any("link into the file /etc/secret.h5" in finding for finding in found)
    assert any("values that lie in another file" in finding for finding in found)


# Graphs


def test_a_hidden_save_is_not_mistaken_for_the_loaders_own(tmp_path: Path) -> None:
    import tensorflow as tf
    from tensorflow.python.trackable.resource import CapturableResource

    class Payload(CapturableResource):  # type: ignore[misc]
        def _create_resource(self) -> Any:
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.int64, value_dtype=tf.int64, shared_name="hidden")

        def _initialize(self) -> Any:
            tf.raw_ops.SaveV2(
                prefix=str(tmp_path / "stolen"), tensor_names=["x"], shape_and_slices=[""], tensors=[tf.ones(3)]
            )
            return tf.constant(0)

    module = tf.Module()
    module.payload = Payload()
    double = tf.function(lambda x: {"y": x * 2.0}).get_concrete_function(tf.TensorSpec((None, 4), tf.float32, name="x"))
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": double})
    found = scan.scan(ArtifactPath(SAVED_MODEL, tmp_path / "model"))
    assert any("operation SaveV2 reads or writes files" in finding for finding in found)


def test_a_saved_model_with_variables_is_clean_though_it_can_save_and_restore(tmp_path: Path) -> None:
    assert scan.scan(ArtifactPath(SAVED_MODEL, models.two_signatures(tmp_path))) == []


def test_a_lambda_in_what_tf_keras_wrote_beside_the_graph_is_a_finding(tmp_path: Path) -> None:
    import tf_keras

    inputs = tf_keras.Input((4,), name="x")
    model = tf_keras.Model(inputs, tf_keras.layers.Lambda(lambda x: x * 2.0, name="twice")(inputs))
    model.save(str(tmp_path / "model"), save_format="tf")
    found = scan.scan(ArtifactPath(SAVED_MODEL, tmp_path / "model"))
    assert "layer twice: Lambda carries or loads code" in found
