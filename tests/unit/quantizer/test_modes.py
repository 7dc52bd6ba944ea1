"""Every mode of the converter back end on real models: what the file holds, what its contract says, what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models
from tests.unit.quantizer.quantizing import Run, artifact, file_of, images, passed, quantize_file

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.step import ArtifactPath, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.inference import evaluate
from squeezeflow.modelkit.source import open_source
from squeezeflow.quantizer import checks, modes
from squeezeflow.v1 import artifact_pb2, evaluator_pb2
from squeezeflow.v1.technique_pb2 import Quantize

CONVERTER_MODES = {mode.name: number for number, mode in modes.MODES.items()}
FLOAT, INTEGER = ("dynamic", "float16"), ("int8", "int8_io", "uint8_io", "int16x8")
KERAS = artifact_pb2.ARTIFACT_KIND_KERAS


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(quantize_file, tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def cnn(folder: Path) -> Path:
    """A CNN whose labels differ from sample to sample: random weights alone give every image one label."""
    model = models.tf_keras_cnn()
    for layer in model.layers:
        if layer.name in ("dense", "probabilities"):
            layer.set_weights([layer.get_weights()[0] * 6, layer.get_weights()[1]])
    return models.save(model, folder / "cnn.keras")


@pytest.fixture(scope="module")
def function_model(folder: Path) -> Path:
    """A tf.Module with variables, and two signatures that share them."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    module = tf.Module()
    module.kernel = tf.Variable(rng.normal(size=(3, 3, 1, 8)).astype("f") * 0.3, name="kernel")
    module.matrix = tf.Variable(rng.normal(size=(1352, 4)).astype("f") * 0.1, name="matrix")

    def hidden(picture: Any) -> Any:
        return tf.nn.relu(tf.nn.conv2d(picture, module.kernel, 2, "VALID"))

    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28, 1), tf.float32, name="picture")])
    def scores(picture: Any) -> Any:
        return {"scores": tf.reshape(hidden(picture), [-1, 1352]) @ module.matrix}

    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28, 1), tf.float32, name="picture")])
    def features(picture: Any) -> Any:
        return {"features": hidden(picture)}

    signatures = {"scores": scores, "features": features}
    tf.saved_model.save(module, str(folder / "function"), signatures=signatures)
    return folder / "function"


def pruned_cnn(folder: Path, share: float) -> Path:
    model = models.tf_keras_cnn()
    for name in ("conv", "conv_2", "dense"):
        kernel, *rest = model.get_layer(name).get_weights()
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), share)] = 0
        model.get_layer(name).set_weights([kernel, *rest])
    return models.save(model, folder / f"pruned_{share}.keras")


def small(folder: Path, name: str, *layers: Any) -> Path:
    """Writes a model of the given layers over eight floats."""
    import tf_keras

    return models.save(tf_keras.Sequential([tf_keras.Input((8,), name="x"), *layers]), folder / f"{name}.keras")


def rows(count: int = 20) -> np.ndarray:
    return np.random.default_rng(0).random((count, 8), np.float32)


def end_types(outputs: StepOutputs) -> set[str]:
    file = file_of(outputs)
    return {file.main.tensors[index].dtype for index in (*file.inputs, *file.outputs)}


# What each mode makes


@pytest.mark.parametrize("mode", [*FLOAT, *INTEGER])
def test_a_function_model_goes_through_every_mode(function_model: Path, run: Run, mode: str) -> None:
    outputs = run(function_model, {"x_train": images(24)}, mode=CONVERTER_MODES[mode], signature="scores")
    integer = {} if mode == "float16" else {"integer": True}
    assert passed(outputs) == {"finite": True, "alive": True, "close": True, **integer}
    weights = {weight.tensor.dtype for weight in file_of(outputs).weights if weight.tensor.size >= 1024}
    assert weights == {"float16" if mode == "float16" else "int8"}
    assert end_types(outputs) == {modes.MODES[CONVERTER_MODES[mode]].input_output}
    assert outputs.contract is not None
    assert outputs.contract.signature == "scores"
    assert [tensor.name for tensor in outputs.contract.outputs] == ["scores"]


@pytest.mark.parametrize("mode", ["int8_io", "uint8_io"])
def test_integer_ends_are_in_the_contract_and_evaluate_like_float_ones(
    cnn: Path, run: Run, tmp_path: Path, mode: str
) -> None:
    pictures = images(64)
    outputs = run(cnn, {"x_train": pictures}, mode=CONVERTER_MODES[mode])
    assert outputs.contract is not None
    dtype = mode.removesuffix("_io")
    for tensor in (*outputs.contract.inputs, *outputs.contract.outputs):
        assert tensor.dtype == dtype
        assert tensor.quantization.scale == pytest.approx(1 / 255, rel=0.02)
        assert tensor.quantization.zero_point == (0 if dtype == "uint8" else -128)
    expected = open_source(artifact(cnn)).predict({"image": pictures})["probabilities"]
    labels = expected.argmax(axis=-1)
    assert len(set(labels.tolist())) > 2
    np.savez(tmp_path / "test.npz", x_test=(pictures * 255).round().astype("uint8"), y_test=labels)
    (tmp_path / "contract").write_bytes(contracts.encode(outputs.contract))
    assert outputs.artifact is not None
    artifacts = {
        "model": outputs.artifact,
        "contract": ArtifactPath(artifact_pb2.ARTIFACT_KIND_CONTRACT, tmp_path / "contract"),
        "data": ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, tmp_path / "test.npz"),
    }
    inputs = StepInputs(artifacts, tmp_path, scale=(1 / 255,))
    measured = evaluate.run(evaluator_pb2.EvaluateRequest(), inputs, lambda *_, **__: None)
    assert measured.metrics["accuracy"].value > 0.9


def test_ids_stay_the_integers_that_they_are(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    ids = tf_keras.Input((6,), dtype="int32", name="ids")
    pooled = layers.GlobalAveragePooling1D()(layers.Embedding(100, 16)(ids))
    model = models.save(tf_keras.Model(ids, layers.Dense(3, name="label")(pooled)), tmp_path / "text.keras")
    samples = np.random.default_rng(0).integers(0, 100, (30, 6), dtype=np.int32)
    outputs = run(model, {"ids_train": samples}, mode=Quantize.MODE_INT8_IO)
    assert outputs.contract is not None
    assert outputs.contract.inputs[0].dtype == "int32"
    assert not outputs.contract.inputs[0].HasField("quantization")
    assert outputs.contract.outputs[0].dtype == "int8"


def test_int16x8_has_int16_activations_and_is_closer_than_int8(cnn: Path, run: Run) -> None:
    data = {"x_train": images()}
    wide = run(cnn, data, mode=Quantize.MODE_INT16X8)
    graph = file_of(wide).main
    assert {tensor.dtype for tensor in graph.tensors if tensor.scales and not tensor.constant} == {"int16"}
    assert {tensor.dtype for tensor in graph.tensors if tensor.scales and tensor.constant} <= {"int8", "int64"}
    assert end_types(wide) == {"float32"}
    assert wide.metrics["sqnr_db"].value > run(cnn, data, mode=Quantize.MODE_INT8).metrics["sqnr_db"].value + 6


def test_float16_halves_the_weights_and_says_how_many(cnn: Path, run: Run) -> None:
    outputs = run(cnn, mode=Quantize.MODE_FLOAT16)
    assert {weight.tensor.dtype for weight in file_of(outputs).weights} == {"float16"}
    assert any("2 of 2 weights of 1024 elements or more are float16" in note for note in outputs.notes)
    close = next(invariant for invariant in outputs.invariants if invariant.name == "close")
    assert "for float16" in close.detail


def test_a_file_without_float16_weights_is_not_passed_as_float16(cnn: Path, run: Run) -> None:
    file = file_of(run(cnn, mode=Quantize.MODE_DYNAMIC))
    with pytest.raises(SqueezeflowError, match="none of 2 weights is float16") as refusal:
        checks.integers(file, "float16")
    assert refusal.value.reason == "INVARIANT_BROKEN"


@pytest.mark.parametrize("mode", ["dynamic", "int8_io"])
def test_a_weight_has_one_scale_where_that_is_asked_for(cnn: Path, run: Run, mode: str) -> None:
    data = {"x_train": images()}
    for per_channel in (False, True):
        file = file_of(run(cnn, data, mode=CONVERTER_MODES[mode], per_channel=per_channel))
        scales = {len(weight.tensor.scales) for weight in file.weights if weight.tensor.dtype == "int8"}
        assert (scales == {1}) == (not per_channel)


# Operators without an int16 kernel


def test_int16x8_names_the_operator_that_the_converter_does_not_take(tmp_path: Path, run: Run) -> None:
    import tf_keras

    model = small(tmp_path, "elu", tf_keras.layers.Dense(4, activation="elu"))
    with pytest.raises(SqueezeflowError, match="int16x8 has no kernel for ELU: use mode INT8") as refusal:
        run(model, {"x_train": rows()}, mode=Quantize.MODE_INT16X8)
    assert refusal.value.reason == "UNSUPPORTED_OP"


def test_int16x8_names_the_operator_for_which_litert_would_end_the_process(tmp_path: Path, run: Run) -> None:
    import tf_keras

    model = small(tmp_path, "norm", tf_keras.layers.Dense(4), tf_keras.layers.LayerNormalization())
    with pytest.raises(SqueezeflowError, match="no int16 kernel for SQUARED_DIFFERENCE") as refusal:
        run(model, {"x_train": rows()}, mode=Quantize.MODE_INT16X8)
    assert refusal.value.reason == "UNSUPPORTED_OP"


def test_int16x8_refuses_values_that_calibration_saw_as_zero_only(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers, dead = tf_keras.layers, tf_keras.initializers.Constant(-100.0)
    hidden = layers.Dense(8, activation="relu", bias_initializer=dead)
    infinite = small(tmp_path, "infinite", hidden, layers.Dense(3, bias_initializer="ones"))
    # Its bias of zeros is added by an operator of its own, for which LiteRT would end the process.
    added = small(tmp_path, "added", layers.Reshape((8, 1)), layers.Conv1DTranspose(4, 3))
    for model, operator in ((infinite, "a layer with a bias"), (added, "ADD")):
        with pytest.raises(SqueezeflowError, match=f"{operator} takes values that are 0 on every") as refusal:
            run(model, {"x_train": rows()}, mode=Quantize.MODE_INT16X8)
        assert refusal.value.reason == "UNSUPPORTED_OP"


def test_one_scale_for_a_depthwise_kernel_is_refused_with_int16x8(cnn: Path, run: Run) -> None:
    with pytest.raises(SqueezeflowError, match="leave per_channel out") as refusal:
        run(cnn, {"x_train": images(8)}, mode=Quantize.MODE_INT16X8, per_channel=False)
    assert refusal.value.reason == "INVALID_PARAMETER"


# Sparse encoding


def test_pruned_kernels_are_stored_sparse_and_run_with_xnnpack(tmp_path: Path, run: Run) -> None:
    model = pruned_cnn(tmp_path, 0.8)
    dense = run(model, mode=Quantize.MODE_FLOAT16)
    outputs = run(model, mode=Quantize.MODE_FLOAT16, sparse_encoding=True)
    assert outputs.artifact is not None
    assert dense.artifact is not None
    assert outputs.contract is not None
    assert outputs.artifact.path.stat().st_size < 0.6 * dense.artifact.path.stat().st_size
    assert sum(weight.tensor.sparse for weight in file_of(outputs).weights) == 3
    assert passed(outputs)["sparsity"]
    assert Runner(outputs.artifact.path, outputs.contract).delegate == "xnnpack"
    assert any(note.startswith("3 kernels are stored sparse") for note in outputs.notes)


@pytest.mark.parametrize(
    ("share", "note"), [(0.0, "no kernel has zeros enough"), (0.35, "kernels stay dense: sparse ones would make")]
)
def test_sparse_encoding_never_makes_a_file_larger(tmp_path: Path, run: Run, share: float, note: str) -> None:
    model = pruned_cnn(tmp_path, share)
    plain = run(model, mode=Quantize.MODE_FLOAT16)
    outputs = run(model, mode=Quantize.MODE_FLOAT16, sparse_encoding=True)
    assert outputs.artifact is not None
    assert plain.artifact is not None
    assert outputs.artifact.path.read_bytes() == plain.artifact.path.read_bytes()
    assert any(told.startswith(note) for told in outputs.notes)


# Back ends and parameters


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"mode": Quantize.MODE_INT8, "sparse_encoding": True}, "sparse_encoding"),
        ({"mode": Quantize.MODE_DYNAMIC, "sparse_encoding": True}, "sparse_encoding"),
        ({"mode": Quantize.MODE_FLOAT16, "per_channel": False}, "per_channel"),
        ({"mode": Quantize.MODE_INT4, "backend": Quantize.BACKEND_CONVERTER}, "mode"),
        ({"block_size": 32, "backend": Quantize.BACKEND_CONVERTER}, "block_size"),
        ({"weight_only": True, "backend": Quantize.BACKEND_CONVERTER}, "weight_only"),
        (
            {"mode": Quantize.MODE_FLOAT16, "sparse_encoding": True, "backend": Quantize.BACKEND_AI_EDGE},
            "sparse_encoding",
        ),
    ],
)
def test_parameters_that_do_not_go_together_are_refused_by_name(params: dict[str, Any], field: str) -> None:
    with pytest.raises(SqueezeflowError) as refusal:
        modes.backend(Quantize(**params), KERAS)
    assert refusal.value.reason == "INVALID_PARAMETER"
    assert refusal.value.fields[0][0] == f"params.{field}"


def test_the_back_end_follows_from_what_is_asked_for() -> None:
    rule = Quantize.LayerPrecision(pattern="*", precision=Quantize.PRECISION_INT4)
    needing = [{"mode": Quantize.MODE_INT4}, {"weight_only": True}, {"block_size": 32}, {"layer_precisions": [rule]}]
    for params in needing:
        assert modes.backend(Quantize(**params), KERAS) == modes.AI_EDGE
    assert modes.backend(Quantize(), artifact_pb2.ARTIFACT_KIND_TFLITE) == modes.AI_EDGE
    for mode in CONVERTER_MODES.values():
        assert modes.backend(Quantize(mode=mode), KERAS) == modes.CONVERTER
    with pytest.raises(SqueezeflowError, match="set backend to AI_EDGE"):
        modes.backend(Quantize(backend=Quantize.BACKEND_CONVERTER), artifact_pb2.ARTIFACT_KIND_TFLITE)


# Model forms


def test_text_is_refused_before_anything_is_converted(tmp_path: Path, run: Run) -> None:
    told: list[Any] = []
    with pytest.raises(SqueezeflowError, match="is text") as refusal:
        run(models.string_input(tmp_path), told=told, mode=Quantize.MODE_DYNAMIC)
    assert refusal.value.reason == "UNSUPPORTED_INPUT"
    assert [stage for _, stage in told] == ["loading"]


@pytest.mark.parametrize("form", ["keras", "saved_model"])
def test_a_recurrent_model_is_calibrated_and_forgets_between_samples(tmp_path: Path, run: Run, form: str) -> None:
    import tf_keras

    path = models.recurrent_file(tmp_path)
    if form == "saved_model":
        path = models.save(tf_keras.models.load_model(str(path)), tmp_path / "lstm")
    sequences = np.random.default_rng(0).normal(size=(24, 12, 3)).astype(np.float32)
    outputs = run(path, {"x_train": sequences}, mode=Quantize.MODE_INT8)
    assert passed(outputs)["integer"]
    assert outputs.contract is not None
    assert outputs.artifact is not None
    assert list(outputs.contract.inputs[0].shape) == [1, 12, 3]
    assert any("batch is fixed to 1" in note for note in outputs.notes)
    assert TfliteFile.read(outputs.artifact.path).stateful
    runner, name = Runner(outputs.artifact.path, outputs.contract), outputs.contract.inputs[0].name
    (forwards,) = runner.invoke({name: sequences}).values()
    (backwards,) = runner.invoke({name: sequences[::-1]}).values()
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_free_height_and_width_are_calibrated_at_one_size_and_run_at_others(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    inputs = tf_keras.Input((None, None, 1), name="image")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(inputs))
    model = models.save(tf_keras.Model(inputs, layers.Dense(3, activation="softmax")(x)), tmp_path / "free.keras")
    outputs = run(model, {"x_calibration": images(20, height=17)}, mode=Quantize.MODE_INT8_IO)
    assert outputs.contract is not None
    assert outputs.artifact is not None
    assert list(outputs.contract.inputs[0].shape) == [-1, -1, -1, 1]
    runner, source = Runner(outputs.artifact.path, outputs.contract), open_source(artifact(model))
    for height in (9, 40, 17):
        (found,) = runner.invoke({"image": images(5, height=height)}).values()
        (expected,) = source.predict({"image": images(5, height=height)}).values()
        np.testing.assert_allclose(found, expected, atol=0.03)
