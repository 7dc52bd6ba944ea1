"""What is refused before any load; every sample would write a marker file if anything of it ran."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import json
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests import models

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import keras_names, saved_model_source, scan
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


def gadget_loss(folder: Path, marker: Path) -> Path:
    return models.gadget_in(folder, marker, "loss")


CARRIERS: list[tuple[Callable[[Path, Path], Path], int, str]] = [
    (models.lambda_layer, KERAS, "layer payload: Lambda"),
    (lambda_hdf5, HDF5, "layer payload: Lambda"),
    (models.gadget_config, KERAS, "gadget_module.Gadget"),
    (models.writes_file_at_load, SAVED_MODEL, "operation WriteFile"),
    (models.calls_python, SAVED_MODEL, "operation PyFunc"),
    (models.lambda_saved_model, SAVED_MODEL, "layer payload: Lambda"),
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


@pytest.mark.parametrize("make", [models.writes_file_at_load, models.lambda_saved_model, lambda_hdf5])
def test_the_samples_do_run_code_where_nothing_scans_them(make: Callable[[Path, Path], Path], tmp_path: Path) -> None:
    import tensorflow as tf
    import tf_keras

    marker = tmp_path / "marker"
    path = make(tmp_path, marker)
    if make is models.writes_file_at_load:
        tf.saved_model.load(str(path))
    else:
        tf_keras.models.load_model(str(path))
    assert marker.exists()


@pytest.mark.parametrize(
    "place", ["activation", "kernel_initializer", "kernel_regularizer", "bias_constraint", "dtype", "name", "loss"]
)
def test_a_gadget_anywhere_in_a_configuration_is_never_imported(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    marker = tmp_path / "marker"
    path = models.gadget_in(tmp_path, marker, place)
    if place == "loss":
        # A loss of the author's own is honest: the model is loaded without it.
        open_source(ArtifactPath(KERAS, path))
    else:
        with pytest.raises(SqueezeflowError, match=r"the function gadget_function\.call is not part of Keras"):
            open_source(ArtifactPath(KERAS, path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "make", [models.gadget_config, lambda folder, marker: models.gadget_in(folder, marker, "loss")]
)
def test_gadgets_are_imported_where_nothing_scans_them(
    make: Callable[[Path, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tf_keras

    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("gadget_function", "gadget_module"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    marker = tmp_path / "marker"
    path = make(tmp_path, marker)
    # What is imported may be of no use to Keras; it has run by then.
    with contextlib.suppress(TypeError, ValueError):
        tf_keras.models.load_model(str(path))
    assert marker.exists()


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("os", "system"),
        ("subprocess", "Popen"),
        ("builtins", "exec"),
        ("keras.utils", "get_file"),
        ("tf_keras.utils", "f"),
    ],
)
def test_a_compile_configuration_names_no_gadget_either(module: str, function: str) -> None:
    gadget = {"module": module, "class_name": "function", "config": function, "registered_name": "function"}
    for compiled in ({"loss": gadget}, {"metrics": [[gadget]]}, {"optimizer": {"config": {"learning_rate": gadget}}}):
        found = scan_config({**layer("Sequential", layers=[]), "compile_config": compiled})
        assert found == [f"compile_config: the function {module}.{function}"]
    lambdas = {"loss": {"class_name": "__lambda__", "config": {"value": "4wEA"}}}
    assert scan_config({"compile_config": lambdas}) == ["compile_config: a Python lambda"]


def test_the_training_configuration_of_an_hdf5_file_is_scanned(tmp_path: Path) -> None:
    path = models.tf_keras_file(tmp_path, name="model.h5", compiled=True)
    assert scan.scan(ArtifactPath(HDF5, path)) == []
    with h5py.File(path, "a") as file:
        training = json.loads(file.attrs["training_config"])
        training["loss"] = {"module": "os", "class_name": "function", "config": "system"}
        file.attrs["training_config"] = json.dumps(training)
    assert scan.scan(ArtifactPath(HDF5, path)) == ["training_config: the function os.system"]


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
        ({**layer("Add", name="a"), "module": "keras.src.ops.operation_utils"}, "keras.src.ops.operation_utils.Add"),
        ({"class_name": 7, "config": {}}, "not named by text"),
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


def test_a_member_that_keras_does_not_write_is_refused(tmp_path: Path) -> None:
    # Weights as .npz would be an archive in the archive, which nothing has looked into.
    path = archive(tmp_path / "m.keras", {"config.json": CONFIG, "model.weights.npz": b"PK"})
    assert "'model.weights.npz' is not one that Keras writes" in refused(path)
    assert scan_archive(archive(tmp_path / "n.keras", {"config.json": CONFIG, "assets/layers/words.txt": b"a"})) == []


def test_members_that_share_their_bytes_inflate_together(tmp_path: Path) -> None:
    # The directory names one deflated member many times, as "better zip bombs" do.
    path = archive(tmp_path / "m.keras", {"config.json": CONFIG, "assets/0": bytes(1 << 20)}, compression=8)
    with zipfile.ZipFile(path, "a") as file:
        first = file.getinfo("assets/0")
        for number in range(1, 300):
            again = copy.copy(first)
            again.filename = f"assets/{number}"
            file.filelist.append(again)
            file.NameToInfo[again.filename] = again
        file._didModify = True  # type: ignore[attr-defined]
    assert path.stat().st_size < 100_000
    assert "inflates to more than" in refused(path)


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    members = {f"assets/{number}": b"" for number in range(10_001)}
    assert "at most 10000 are taken" in refused(archive(tmp_path / "m.keras", {"config.json": CONFIG, **members}))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_a_member_that_is_no_file_is_refused(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", CONFIG)
        link = zipfile.ZipInfo("assets/link")
        link.external_attr = (kind | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    assert "is a link, a device or encrypted" in refused(path)


# HDF5


def test_a_kernel_in_another_file_is_refused_and_would_be_read(tmp_path: Path) -> None:
    path = models.reads_other_file(tmp_path, tmp_path / "secret.h5")
    (found,) = scan.scan(ArtifactPath(HDF5, path))
    assert f"a link into the file {tmp_path / 'secret.h5'}" in found
    with h5py.File(path) as file:
        assert (file[models.LINKED][...] == 7.0).all()


def test_virtual_values_are_a_finding(tmp_path: Path) -> None:
    path = models.tf_keras_file(tmp_path, name="model.h5")
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("/etc/secret.h5", "values", (4,))
        file.create_virtual_dataset("virtual", layout)
    assert scan.scan(ArtifactPath(HDF5, path)) == ["//virtual: values that lie in another file"]


def test_a_dataset_that_is_small_in_the_file_and_huge_in_memory_is_malformed(tmp_path: Path) -> None:
    path = models.tf_keras_file(tmp_path, name="model.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset("huge", (1 << 40,), "f4", chunks=(1 << 16,))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(SqueezeflowError, match="its values take more than") as caught:
        scan.scan(ArtifactPath(HDF5, path))
    assert caught.value.reason == "MALFORMED_MODEL"


def test_a_filter_that_would_load_a_library_is_a_finding(tmp_path: Path) -> None:
    path = models.tf_keras_file(tmp_path, name="model.h5")
    with h5py.File(path, "a") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4,))
        # Optional, so that it can be written here without the library.
        properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (0,))
        h5py.h5d.create(file.id, b"filtered", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), properties)
        file.create_dataset("deflated", data=np.zeros(100), compression="gzip", shuffle=True)
    (found,) = scan.scan(ArtifactPath(HDF5, path))
    assert "the filter 32001, for which a library would be loaded" in found


# Graphs


def edited_graph(folder: Path, change: Callable[[Any], None]) -> list[str]:
    """Scans a clean SavedModel whose proto was changed."""
    path = models.two_signatures(folder)
    message = saved_model_source.read_proto(path)
    change(message.meta_graphs[0])
    (path / "saved_model.pb").write_bytes(message.SerializeToString())
    return scan.scan(ArtifactPath(SAVED_MODEL, path))


@pytest.mark.parametrize(
    ("operation", "what"),
    [
        ("ReadFile", "reads or writes files"),
        ("WriteFile", "reads or writes files"),
        ("MatchingFiles", "reads or writes files"),
        # It runs the graph that it is given as text.
        ("DatasetFromGraph", "reads or writes files"),
        ("TextLineDataset", "reads or writes files"),
        # What could give `IteratorGetNext`, which is let through, something to read from.
        ("OneShotIterator", "reads or writes files"),
        ("EagerPyFunc", "runs Python code"),
        ("XlaCustomCallV2", "reaches other processes"),
        ("RemoteCall", "reaches other processes"),
        ("Abort", "is not known to be harmless"),
        ("FIFOQueueV2", "is not known to be harmless"),
        ("SomebodysOwnOperation", "is not known to be harmless"),
    ],
)
@pytest.mark.parametrize("where", ["graph", "function"])
def test_an_operation_with_effects_is_found_wherever_it_is(
    operation: str, what: str, where: str, tmp_path: Path
) -> None:
    def change(graph: Any) -> None:
        nodes = graph.graph_def.node if where == "graph" else graph.graph_def.library.function.add().node_def
        nodes.add(name="payload", op=operation)

    (found,) = edited_graph(tmp_path, change)
    assert f"operation {operation} {what}" in found


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "gs://bucket/words.txt", ""])
def test_an_asset_outside_of_the_folder_is_a_finding(name: str, tmp_path: Path) -> None:
    (found,) = edited_graph(tmp_path, lambda graph: graph.asset_file_def.add(filename=name))
    assert found == f"the asset {name!r} lies outside of the model"


def test_an_asset_inside_of_the_folder_is_clean(tmp_path: Path) -> None:
    assert edited_graph(tmp_path, lambda graph: graph.asset_file_def.add(filename="words.txt")) == []


def test_a_link_in_the_folder_is_a_finding(tmp_path: Path) -> None:
    path = models.two_signatures(tmp_path)
    (path / "assets").mkdir(exist_ok=True)
    (path / "assets" / "words.txt").symlink_to("/etc/passwd")
    assert scan.scan(ArtifactPath(SAVED_MODEL, path)) == ["assets/words.txt: a link to /etc/passwd"]


def test_code_in_the_metadata_of_an_old_saved_model_is_a_finding(tmp_path: Path) -> None:
    gadget = {"module": "os", "class_name": "function", "config": "system"}
    config = {"class_name": "Dense", "config": {"name": "d", "activation": gadget}}

    def change(graph: Any) -> None:
        graph.object_graph_def.nodes.add().user_object.metadata = json.dumps(config)

    assert edited_graph(tmp_path, change) == ["layer d: the function os.system"]


def test_metadata_that_cannot_be_read_is_malformed(tmp_path: Path) -> None:
    path = models.two_signatures(tmp_path)
    (path / "keras_metadata.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(SqueezeflowError, match=r"keras_metadata\.pb cannot be read") as caught:
        scan.scan(ArtifactPath(SAVED_MODEL, path))
    assert caught.value.reason == "MALFORMED_MODEL"


def test_an_honest_saved_model_with_state_of_every_kind_is_clean(tmp_path: Path) -> None:
    import tf_keras

    layers = tf_keras.layers
    words = tf_keras.Input((6,), dtype="int64", name="words")
    x = layers.Embedding(12, 4)(layers.IntegerLookup(vocabulary=[3, 5, 8], name="lookup")(words))
    x = layers.Dropout(0.5)(layers.Flatten()(layers.GaussianNoise(0.1)(x)))
    model = tf_keras.Model(words, layers.Dense(1)(layers.BatchNormalization()(x)))
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((8, 6), "int64"), np.zeros((8, 1)))
    model.save(str(tmp_path / "model"), save_format="tf")
    assert scan.scan(ArtifactPath(SAVED_MODEL, tmp_path / "model")) == []


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
