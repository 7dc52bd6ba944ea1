"""Post-training quantization of real models from every format, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models
from tests.unit.quantizer.quantizing import Run, artifact, file_of, images, passed, quantize_file

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import conversion, pruned
from squeezeflow.modelkit.source import open_source
from squeezeflow.quantizer import checks
from squeezeflow.v1 import technique_pb2

DYNAMIC, INT8 = technique_pb2.Quantize.MODE_DYNAMIC, technique_pb2.Quantize.MODE_INT8


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(quantize_file, tmp_path)


def convert_float(model: Path) -> TfliteFile:
    source, target = open_source(artifact(model)), model.with_suffix(".tflite")
    conversion.convert(source.converter(), target)
    return TfliteFile.read(target)


FORMATS = [models.tf_keras_file, models.keras3_file, models.saved_model]


@pytest.mark.parametrize("make", FORMATS, ids=["tf_keras", "keras3", "saved_model"])
def test_dynamic_range_needs_no_data_and_makes_large_weights_int8(tmp_path: Path, run: Run, make: Any) -> None:
    outputs = run(make(tmp_path), mode=DYNAMIC)
    weights = file_of(outputs).weights
    assert {weight.tensor.dtype for weight in weights if weight.tensor.size >= 1024} == {"int8"}
    assert {weight.tensor.dtype for weight in weights if weight.tensor.size < 1024} == {"float32"}
    assert passed(outputs) == {"finite": True, "alive": True, "close": True, "integer": True}
    assert outputs.metrics["sqnr_db"].value > 15


@pytest.mark.parametrize("make", FORMATS, ids=["tf_keras", "keras3", "saved_model"])
def test_int8_is_integer_inside_and_float_outside(tmp_path: Path, run: Run, make: Any) -> None:
    outputs = run(make(tmp_path), {"x_train": images()}, mode=INT8)
    file = file_of(outputs)
    assert {weight.tensor.dtype for weight in file.weights} == {"int8"}
    assert {file.tensors[index].dtype for index in (*file.inputs, *file.outputs)} == {"float32"}
    assert passed(outputs) == {"finite": True, "alive": True, "close": True, "integer": True}
    assert outputs.contract is not None
    assert [tensor.name for tensor in outputs.contract.inputs] == ["image"]
    assert "calibrated on 40 samples of train, drawn by seed 0" in outputs.notes


def test_calibration_takes_its_own_arrays_first_and_draws_from_train_by_seed(tmp_path: Path, run: Run) -> None:
    source = models.tf_keras_file(tmp_path)
    told: list[Any] = []
    outputs = run(source, {"x_train": images(), "x_calibration": images(9)}, told=told, mode=INT8)
    assert "calibrated on all 9 samples of calibration" in outputs.notes
    assert list(dict.fromkeys(stage for _, stage in told)) == ["loading", "converting", "calibrating", "proving"]
    assert sum(stage == "calibrating" for _, stage in told) == 9
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)
    drawn = partial(run, source, {"x_train": images() * np.arange(1, 41).reshape(-1, 1, 1, 1)}, mode=INT8)
    few = [drawn(calibration_samples=5, seed=seed).artifact.path.read_bytes() for seed in (0, 0, 1)]
    assert few[0] == few[1]
    assert few[0] != few[2], "other samples have other ranges"


def test_inputs_of_one_shape_are_calibrated_each_with_its_own_values(tmp_path: Path, run: Run) -> None:
    rng = np.random.default_rng(0)
    zeta = rng.uniform(-1, 1, (60, 6)).astype(np.float32)
    alpha = rng.uniform(-50, 50, (60, 6)).astype(np.float32)
    source = models.two_inputs_file(tmp_path)
    outputs = run(source, {"zeta_train": zeta, "alpha_train": alpha}, mode=INT8)
    assert outputs.metrics["sqnr_db"].value > 25
    quantized = Runner(outputs.artifact.path, outputs.contract).invoke({"zeta": zeta, "alpha": alpha})
    expected = open_source(artifact(source)).predict({"zeta": zeta, "alpha": alpha})
    for name, values in expected.items():
        assert np.corrcoef(values.ravel(), quantized[name].ravel())[0, 1] > 0.999


def test_free_height_and_width_are_calibrated_in_the_size_of_the_data(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    inputs = tf_keras.Input((None, None, 1), name="image")
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    outputs = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    source = models.save(tf_keras.Model(inputs, outputs), tmp_path / "free.keras")
    made = run(source, {"x_calibration": images(20, height=17), "x_test": images(8, height=40)}, mode=INT8)
    assert passed(made)["integer"]
    assert made.contract is not None
    other = Runner(made.artifact.path, made.contract).invoke({"image": images(2, height=12)})
    assert next(iter(other.values())).shape == (2, 3)


def test_an_operator_without_an_int8_kernel_stays_float_and_is_named(tmp_path: Path, run: Run) -> None:
    import tensorflow as tf

    rng = np.random.default_rng(0)
    kernels = [tf.Variable(rng.normal(size=shape).astype(np.float32)) for shape in ((8, 16), (16, 4))]

    @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])
    def waves(x: Any) -> Any:
        return {"y": tf.matmul(tf.cos(tf.matmul(x, kernels[0])), kernels[1])}

    module = tf.Module()
    module.kernels = kernels
    tf.saved_model.save(module, str(tmp_path / "waves"), signatures={"serving_default": waves})
    outputs = run(tmp_path / "waves", {"x_train": rng.normal(size=(50, 8)).astype(np.float32)}, mode=INT8)
    assert passed(outputs)["integer"]
    assert any(note.startswith("left float, for want of an int8 kernel: COS") for note in outputs.notes)


def test_a_file_in_which_nothing_became_int8_is_not_passed_as_quantized(tmp_path: Path) -> None:
    file = convert_float(models.tf_keras_file(tmp_path))
    (invariant,), notes = checks.integers(file, "int8")
    assert not invariant.passed
    assert "CONV_2D" in invariant.detail
    assert notes


def test_zeros_of_a_pruned_model_are_found_again_in_the_file(tmp_path: Path, run: Run) -> None:
    import tf_keras

    model = tf_keras.models.load_model(str(models.tf_keras_file(tmp_path)))
    dense_file = convert_float(models.tf_keras_file(tmp_path, name="dense.keras"))
    for name in ("conv_2", "dense"):
        kernel, bias = model.get_layer(name).get_weights()
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.6)] = 0
        model.get_layer(name).set_weights([kernel, bias])
    source = models.save(model, tmp_path / "pruned.keras")
    for mode in (DYNAMIC, INT8):
        outputs = run(source, {"x_train": images()}, mode=mode)
        assert passed(outputs)["sparsity"]
        assert "dense" in next(i.detail for i in outputs.invariants if i.name == "sparsity")
    (lost,) = pruned.sparsity_kept(open_source(artifact(source)), dense_file)
    assert not lost.passed


@pytest.mark.parametrize("arrays", [None, {"x_test": images()}], ids=["no data", "test only"])
def test_int8_without_calibration_samples_is_data_missing(
    tmp_path: Path, run: Run, arrays: dict[str, np.ndarray] | None
) -> None:
    with pytest.raises(SqueezeflowError, match="x_calibration or x_train") as refusal:
        run(models.tf_keras_file(tmp_path), arrays, mode=INT8)
    assert refusal.value.reason == "DATA_MISSING"


def test_a_noisier_result_than_was_asked_for_is_refused_with_the_numbers(tmp_path: Path, run: Run) -> None:
    with pytest.raises(SqueezeflowError, match=r"SQNR [\d.]+ dB, least 150 dB") as refusal:
        run(models.tf_keras_file(tmp_path), mode=DYNAMIC, min_sqnr_db=150)
    assert refusal.value.reason == "OUTPUT_MISMATCH"


def test_an_operation_without_a_kernel_is_refused_by_name(tmp_path: Path, run: Run) -> None:
    with pytest.raises(SqueezeflowError, match="MatrixInverse") as refusal:
        run(models.needs_flex(tmp_path), mode=DYNAMIC)
    assert refusal.value.reason == "UNSUPPORTED_OP"
