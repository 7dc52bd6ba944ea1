"""Quantization with ai-edge-quantizer: what every weight becomes, from Keras models, SavedModels and float TFLite."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants.weights import WeightTarget, weights
from squeezeflow.core.litert import Runner
from squeezeflow.core.step import ArtifactPath, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.core.tflite.values import real_values
from squeezeflow.modelkit import conversion
from squeezeflow.modelkit.source import open_source
from squeezeflow.quantizer import ai_edge
from squeezeflow.quantizer.ai_edge_layers import key, layers_of
from squeezeflow.v1 import artifact_pb2, technique_pb2

KINDS = {
    ".keras": artifact_pb2.ARTIFACT_KIND_KERAS,
    ".tflite": artifact_pb2.ARTIFACT_KIND_TFLITE,
    "": artifact_pb2.ARTIFACT_KIND_SAVED_MODEL,
}
Quantize = technique_pb2.Quantize
DYNAMIC, INT8, FLOAT16, INT4 = Quantize.MODE_DYNAMIC, Quantize.MODE_INT8, Quantize.MODE_FLOAT16, Quantize.MODE_INT4
Run = Callable[..., StepOutputs]
SMALL = "it has fewer than 1,024 elements"


def artifact(model: Path) -> ArtifactPath:
    return ArtifactPath(KINDS[model.suffix], model)


def quantize_file(
    folder: Path, model: Path, arrays: dict[str, np.ndarray] | None = None, *, contract: Any = None, **params: Any
) -> StepOutputs:
    artifacts = {"model": artifact(model)}
    if arrays is not None:
        np.savez(folder / "data.npz", **arrays)
        artifacts["data"] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, folder / "data.npz")
    if contract is not None:
        (folder / "contract.json").write_bytes(contracts.encode(contract))
        artifacts["contract"] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_CONTRACT, folder / "contract.json")
    workdir = folder / f"work-{len(list(folder.glob('work-*')))}"
    workdir.mkdir()
    inputs = StepInputs(artifacts=artifacts, workdir=workdir)
    return ai_edge.run(Quantize(**params), inputs, lambda *_args, **_more: None)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(quantize_file, tmp_path)


def rules(**precisions: str) -> list[Any]:
    """Gives layer precisions; `_` in a keyword stands for any text."""
    return [rule(pattern.replace("_", "*"), precision) for pattern, precision in precisions.items()]


def rule(pattern: str, precision: str) -> Any:
    return Quantize.LayerPrecision(pattern=pattern, precision=f"PRECISION_{precision}")


def convert_float(model: Path) -> Path:
    source, target = open_source(artifact(model)), model.with_suffix(".tflite")
    conversion.convert(source.converter(), target)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CNN of most tests as `.keras` and as float TFLite: conv 72, depthwise 72, conv_2 1152, dense 12800, 320."""
    made = tmp_path_factory.mktemp("ai_edge")
    convert_float(models.tf_keras_file(made, name="cnn.keras"))
    return made


@pytest.fixture(scope="module")
def keras(folder: Path) -> Path:
    return folder / "cnn.keras"


@pytest.fixture(scope="module")
def tflite(folder: Path) -> Path:
    return folder / "cnn.tflite"


def images(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).random((count, 28, 28, 1), np.float32)


def file_of(outputs: StepOutputs) -> TfliteFile:
    assert outputs.artifact is not None
    return TfliteFile.read(outputs.artifact.path)


def dtypes(outputs: StepOutputs) -> dict[int, str]:
    """Gives the types of the CNN's weights by their size; both of 72 elements have one."""
    return {weight.tensor.size: weight.tensor.dtype for weight in file_of(outputs).weights}


def layers(outputs: StepOutputs) -> dict[str, str]:
    return {layer.layer: layer.detail for layer in outputs.layers}


def integer(outputs: StepOutputs) -> str:
    (found,) = [invariant for invariant in outputs.invariants if invariant.name == "integer"]
    assert found.passed
    return found.detail


def refused(run: Run, *args: Any, **params: Any) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        run(*args, **params)
    assert "\n" not in caught.value.message
    return caught.value


# What weights become


def test_int4_packs_dense_and_convolution_and_lists_every_layer(run: Run, keras: Path) -> None:
    outputs = run(keras, mode=INT4)
    assert dtypes(outputs) == {72: "float32", 1152: "int4", 12800: "int4", 320: "float32"}
    assert layers(outputs) == {
        "image": "has no weights of its own in the file",
        "conv": f"float32: {SMALL}",
        "norm": "has no weights of its own in the file",
        "relu": "has no weights of its own in the file",
        "depthwise": f"float32: {SMALL}",
        "conv_2": "int4, one scale a channel",
        "flatten": "has no weights of its own in the file",
        "dense": "int4, one scale a channel",
        "probabilities": f"float32: {SMALL}",
    }
    assert [layer.layer for layer in outputs.layers if layer.applied] == ["conv_2", "dense"]
    assert {invariant.name for invariant in outputs.invariants} == {"finite", "alive", "close", "integer"}
    assert outputs.metrics["sqnr_db"].value > 20
    assert Runner(outputs.artifact.path, outputs.contract).delegate == "xnnpack"


def test_a_float_tflite_file_gives_what_its_keras_model_gives(run: Run, keras: Path, tflite: Path) -> None:
    from_keras, from_file = run(keras, mode=INT4), run(tflite, mode=INT4)
    assert from_keras.artifact.path.read_bytes() == from_file.artifact.path.read_bytes()
    assert [tensor.name for tensor in from_file.contract.inputs] == ["image"]
    assert from_file.contract.foreign
    assert [layer.layer for layer in from_file.layers] == ["conv", "depthwise", "conv_2", "dense", "probabilities"]


def test_dynamic_range_makes_large_weights_int8_as_the_converter_does(run: Run, tflite: Path) -> None:
    outputs = run(tflite, mode=DYNAMIC)
    assert dtypes(outputs) == {72: "float32", 1152: "int8", 12800: "int8", 320: "float32"}
    assert {op.arithmetic for op in file_of(outputs).operators if op.name == "FULLY_CONNECTED"} == {"hybrid", "float"}


def test_weight_only_computes_in_floats(run: Run, tflite: Path) -> None:
    for mode, dtype in ((DYNAMIC, "int8"), (INT4, "int4")):
        outputs = run(tflite, mode=mode, weight_only=True)
        assert dtypes(outputs)[12800] == dtype
        operators = file_of(outputs).operators
        assert {op.arithmetic for op in operators if op.name in ("CONV_2D", "FULLY_CONNECTED")} == {"float"}
        assert [op.name for op in operators].count("DEQUANTIZE") == 2


def test_one_scale_a_weight_where_channels_are_not_to_have_their_own(run: Run, tflite: Path) -> None:
    outputs = run(tflite, mode=INT4, per_channel=False)
    scales = [len(weight.tensor.scales) for weight in file_of(outputs).weights if weight.tensor.dtype == "int4"]
    assert scales == [1, 1]
    assert layers(outputs)["dense"] == "int4, one scale"


def test_float16_halves_every_weight(run: Run, tflite: Path) -> None:
    outputs = run(tflite, mode=FLOAT16)
    assert set(dtypes(outputs).values()) == {"float16"}
    (close,) = [invariant for invariant in outputs.invariants if invariant.name == "close"]
    assert "for float16" in close.detail
    assert "integer" not in {invariant.name for invariant in outputs.invariants}
    assert "5 of 5 weights are float16" in outputs.notes


# Blocks


def test_blocks_are_used_where_the_input_axis_divides_and_the_rest_is_listed(run: Run, tflite: Path) -> None:
    outputs = run(tflite, mode=INT4, block_size=32, layer_precisions=rules(prob_="INT4"))
    by_size = {weight.tensor.size: weight.tensor for weight in file_of(outputs).weights}
    assert (by_size[320].block_size, len(by_size[320].scales)) == (32, 10)
    assert (by_size[12800].block_size, len(by_size[12800].scales)) == (0, 32)
    assert layers(outputs)["probabilities"] == "int4, one scale for 32 weights"
    assert layers(outputs)["dense"] == "int4, one scale a channel: its input axis of 400 is not divisible by 32"
    assert layers(outputs)["conv_2"] == "int4, one scale a channel: CONV_2D has no kernel for blocks"
    assert "1 of 5 weights are int4 (one scale for 32 weights)" in integer(outputs)


@pytest.fixture(scope="module")
def outliers(folder: Path) -> Path:
    """One dense layer, 256 → 16, in which every 64th weight is ten times larger."""
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    inputs = tf_keras.Input((256,), name="x")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(16, name="dense")(inputs), name="wide")
    kernel, bias = model.get_layer("dense").get_weights()
    kernel[::64] *= 10
    model.get_layer("dense").set_weights([kernel, bias])
    return convert_float(models.save(model, folder / "outliers.keras"))


def test_smaller_blocks_are_closer_to_the_source_and_larger(run: Run, outliers: Path) -> None:
    made = [run(outliers, mode=INT4, block_size=size) for size in (0, 256, 128, 64, 32)]
    ratios = [outputs.metrics["sqnr_db"].value for outputs in made]
    assert ratios[-1] > ratios[0] + 2, "outliers cost only their own block"
    sizes = [outputs.artifact.path.stat().st_size for outputs in made[1:]]
    assert sizes == sorted(sizes)
    blocks = [file_of(outputs).weights[0].tensor.block_size for outputs in made]
    assert blocks == [0, 256, 128, 64, 32]
    source = TfliteFile.read(outliers).weights[0].values
    errors = [np.abs(real_values(file_of(outputs).weights[0].tensor) - source).mean() for outputs in made]
    assert errors[-1] < errors[0] / 1.5


# Precisions by layer


def test_of_several_patterns_the_last_one_counts(run: Run, keras: Path) -> None:
    wanted = [rule("*", "INT8"), rule("dense", "INT4"), rule("conv_?", "FLOAT32"), rule("d*wise", "INT4")]
    outputs = run(keras, mode=DYNAMIC, layer_precisions=wanted)
    assert layers(outputs)["conv"] == "int8, one scale a channel"
    assert layers(outputs)["probabilities"] == "int8, one scale a channel"
    assert layers(outputs)["dense"] == "int4, one scale a channel"
    assert layers(outputs)["conv_2"] == "float32: by layer_precisions"
    assert layers(outputs)["depthwise"] == "int8, one scale a channel: DEPTHWISE_CONV_2D has no int4 kernel"
    assert dtypes(outputs) == {72: "int8", 1152: "float32", 12800: "int4", 320: "int8"}


def test_integers_by_layer_join_float16(run: Run, tflite: Path) -> None:
    outputs = run(tflite, mode=FLOAT16, layer_precisions=rules(dense="INT4"))
    assert dtypes(outputs) == {72: "float16", 1152: "float16", 12800: "int4", 320: "float16"}


@pytest.mark.parametrize("pattern", ["nothing", "relu"], ids=["no such layer", "a layer without weights"])
def test_a_pattern_that_names_no_layer_with_weights_lists_those_there_are(run: Run, keras: Path, pattern: str) -> None:
    error = refused(run, keras, mode=INT4, layer_precisions=[rule("conv", "INT8"), rule(pattern, "INT8")])
    assert error.reason == "INVALID_PARAMETER"
    assert "choose from conv, depthwise, conv_2, dense, probabilities" in error.message
    assert error.fields[0][0] == "params.layer_precisions[1].pattern"


def test_weights_of_keras_3_nested_and_recurrent_models_are_found_by_their_layers(tmp_path: Path) -> None:
    import tf_keras

    units = tf_keras.layers
    inner = tf_keras.Sequential([units.Dense(8, name="first"), units.Dense(8, name="second")], name="inner")
    inputs = tf_keras.Input((5, 8), batch_size=1, name="x")
    x = units.LSTM(8, name="cell")(inner(inputs))
    nested = models.save(tf_keras.Model(inputs, units.Dense(8, name="second")(x), name="outer"), tmp_path / "n.keras")
    expected = {"inner/first": 1, "inner/second": 1, "cell": 8, "second": 1}
    for model, counts in ((nested, expected), (models.keras3_file(tmp_path), dict.fromkeys(KERAS3, 1))):
        source, file = open_source(artifact(model)), TfliteFile.read(convert_float(model))
        _, owners = layers_of(file, source.model)
        assert {name: list(owners.values()).count(name) for name in counts} == counts
        assert len(owners) == sum(counts.values())


KERAS3 = ("conv", "conv_2", "probabilities")


# Static int8


def test_int8_is_integer_inside_and_float_outside(run: Run, tflite: Path) -> None:
    outputs = run(tflite, {"x_train": images()}, mode=INT8)
    file = file_of(outputs)
    assert {weight.tensor.dtype for weight in file.weights} == {"int8"}
    assert {file.tensors[index].dtype for index in (*file.inputs, *file.outputs)} == {"float32"}
    assert {operator.arithmetic for operator in file.operators} == {"integer"}
    assert "calibrated on 40 samples of train, drawn by seed 0" in outputs.notes
    assert outputs.metrics["sqnr_db"].value > 30


def test_calibration_is_drawn_by_seed_and_its_order_does_not_matter(run: Run, tflite: Path) -> None:
    rows = images() * np.arange(1, 41).reshape(-1, 1, 1, 1)
    drawn = [
        run(tflite, {"x_train": rows}, mode=INT8, calibration_samples=5, seed=seed).artifact.path.read_bytes()
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2], "other samples have other ranges"
    own = [run(tflite, {"x_calibration": part}, mode=INT8) for part in (rows[:9], rows[8::-1])]
    assert own[0].artifact.path.read_bytes() == own[1].artifact.path.read_bytes()
    assert "calibrated on all 9 samples of calibration" in own[0].notes


def test_inputs_of_one_shape_are_calibrated_over_the_whole_range_of_each(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    zeta = rng.uniform(-1, 1, (60, 6)).astype(np.float32)
    alpha = rng.uniform(-50, 50, (60, 6)).astype(np.float32)
    outputs = run(models.two_inputs_file(tmp_path), {"zeta_train": zeta, "alpha_train": alpha}, mode=INT8)
    assert outputs.metrics["sqnr_db"].value > 25


def test_static_int8_keeps_one_layer_float_and_another_int4(run: Run, tflite: Path) -> None:
    wanted = [rule("conv", "FLOAT32"), rule("dense", "INT4")]
    outputs = run(tflite, {"x_train": images()}, mode=INT8, layer_precisions=wanted)
    assert dtypes(outputs)[12800] == "int4"
    assert [op.name for op in file_of(outputs).operators if op.arithmetic == "float"] == ["CONV_2D"]
    assert "left float: CONV_2D" in outputs.notes


def test_a_product_of_integers_takes_one_scale(run: Run, tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.kernel = tf.Variable(np.random.default_rng(0).normal(size=(1, 32, 48)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec((1, 16, 32), tf.float32, name="x")])
    def product(x: Any) -> Any:
        return {"y": tf.matmul(x, module.kernel)}

    tf.saved_model.save(module, str(tmp_path / "product"), signatures={"serving_default": product})
    rows = np.random.default_rng(1).normal(size=(20, 16, 32)).astype(np.float32)
    outputs = run(tmp_path / "product", {"x_train": rows}, mode=INT8)
    assert outputs.layers[0].detail == "int8, one scale: BATCH_MATMUL on integers takes one scale"
    assert outputs.metrics["sqnr_db"].value > 25


def test_a_loop_cannot_be_calibrated_but_has_int4_weights(run: Run, tmp_path: Path) -> None:
    model = convert_float(models.recurrent_file(tmp_path, cell="GRU", batch=1))
    sequences = np.random.default_rng(0).random((8, 12, 3), np.float32)
    error = refused(run, model, {"x_train": sequences}, mode=INT8)
    assert (error.reason, error.metadata["op"]) == ("UNSUPPORTED_OP", "WHILE")
    outputs = run(model, {"x_train": sequences}, mode=INT4, layer_precisions=rules(_="INT4"))
    assert {weight.tensor.dtype for weight in file_of(outputs).weights} == {"int4"}
    assert {weight.subgraph for weight in file_of(outputs).weights} == {0, 2}


def test_a_file_without_a_signature_has_int4_weights_but_cannot_be_calibrated(
    run: Run, tflite: Path, tmp_path: Path
) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite.read_bytes(), 0))
    model.signatureDefs = []
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    (tmp_path / "bare.tflite").write_bytes(bytes(builder.Output()))
    assert dtypes(run(tmp_path / "bare.tflite", mode=INT4))[12800] == "int4"
    (name,) = TfliteFile.read(tmp_path / "bare.tflite").input_names
    error = refused(run, tmp_path / "bare.tflite", {f"{name}_train": images()}, mode=INT8)
    assert error.reason == "UNSUPPORTED_INPUT"
    assert "no signature" in error.message


def test_a_table_that_is_looked_up_and_multiplied_with_stays_float_and_says_why(run: Run, tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.table = tf.Variable(np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32))
    module.kernel = tf.Variable(np.random.default_rng(1).normal(size=(64, 48)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32, name="ids")])
    def tied(ids: Any) -> Any:
        logits = tf.matmul(tf.gather(module.table, ids), module.table, transpose_b=True)
        return {"y": tf.matmul(logits, module.kernel)}

    tf.saved_model.save(module, str(tmp_path / "tied"), signatures={"serving_default": tied})
    outputs = run(tmp_path / "tied", mode=INT4)
    assert {w.tensor.size: w.tensor.dtype for w in file_of(outputs).weights} == {2048: "float32", 3072: "int4"}
    assert "FULLY_CONNECTED uses it too" in integer(outputs)


@pytest.mark.parametrize("arrays", [None, {"x_test": images()}], ids=["no data", "test only"])
def test_int8_without_calibration_samples_is_data_missing(run: Run, tflite: Path, arrays: Any) -> None:
    error = refused(run, tflite, arrays, mode=INT8)
    assert error.reason == "DATA_MISSING"
    assert "x_calibration or x_train" in error.message


# What is refused


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("mode", {"mode": Quantize.MODE_INT16X8}),
        ("mode", {"mode": Quantize.MODE_UINT8_IO}),
        ("weight_only", {"mode": INT8, "weight_only": True}),
        ("weight_only", {"mode": FLOAT16, "weight_only": True}),
        ("block_size", {"mode": DYNAMIC, "block_size": 32}),
        ("block_size", {"mode": INT8, "block_size": 32, "layer_precisions": [rule("dense", "INT4")]}),
        ("block_size", {"mode": INT4, "block_size": 32, "weight_only": True}),
        ("block_size", {"mode": INT4, "block_size": 32, "per_channel": False}),
        ("sparse_encoding", {"mode": FLOAT16, "sparse_encoding": True}),
    ],
)
def test_parameters_that_do_not_go_together_are_refused_by_name(
    run: Run, tflite: Path, field: str, params: dict[str, Any]
) -> None:
    error = refused(run, tflite, **params)
    assert error.reason == "INVALID_PARAMETER"
    assert error.fields[0][0] == f"params.{field}"


def test_a_file_that_is_not_float_is_refused_naming_a_tensor(run: Run, tflite: Path) -> None:
    for mode, dtype in ((DYNAMIC, "int8"), (FLOAT16, "float16")):
        made = run(tflite, mode=mode).artifact.path
        error = refused(run, made, mode=INT4)
        assert (error.reason, error.metadata["dtype"]) == ("UNSUPPORTED_INPUT", dtype)
        assert error.metadata["tensor"] in error.message


def test_a_sparse_file_is_refused(run: Run, folder: Path) -> None:
    import tensorflow as tf

    source = open_source(artifact(pruned(folder / "cnn.keras", folder / "for_sparse.keras")))
    converter = source.converter()
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    conversion.convert(converter, folder / "sparse.tflite")
    error = refused(run, folder / "sparse.tflite", mode=INT4)
    assert error.reason == "UNSUPPORTED_INPUT"
    assert "stored sparse" in error.message
    assert error.metadata["tensor"].startswith("dense/MatMul")


def pruned(source: Path, target: Path, share: float = 0.8) -> Path:
    """Writes the CNN with a share of its dense kernel set to zero."""
    import tf_keras

    model = tf_keras.models.load_model(str(source))
    kernel, bias = model.get_layer("dense").get_weights()
    kernel[np.abs(kernel) < np.quantile(np.abs(kernel), share)] = 0
    model.get_layer("dense").set_weights([kernel, bias])
    return models.save(model, target)


def test_a_model_without_a_weight_to_quantize_is_refused(run: Run, tmp_path: Path) -> None:
    error = refused(run, convert_float(models.two_inputs_file(tmp_path)), mode=INT4)
    assert error.reason == "UNSUPPORTED_LAYER"
    assert SMALL in error.message


def test_a_noisier_result_than_was_asked_for_is_refused_with_the_numbers(run: Run, tflite: Path) -> None:
    error = refused(run, tflite, mode=INT4, min_sqnr_db=150)
    assert error.reason == "OUTPUT_MISMATCH"
    assert "least 150 dB" in error.message


def test_the_steps_own_contract_names_inputs_and_outputs(run: Run, tflite: Path) -> None:
    contract = contracts.foreign(tflite)
    contract.inputs[0].name, contract.outputs[0].name, contract.labels[:] = "photo", "answer", ["a"] * 10
    outputs = run(tflite, {"photo_test": images()}, contract=contract, mode=INT4)
    assert [tensor.name for tensor in (*outputs.contract.inputs, *outputs.contract.outputs)] == ["photo", "answer"]
    assert len(outputs.contract.golden_samples) == 4
    assert set(outputs.contract.golden_samples[0].inputs) == {"photo"}


# What is proved


def test_zeros_of_a_pruned_model_are_found_again(run: Run, keras: Path, tmp_path: Path) -> None:
    source = pruned(keras, tmp_path / "pruned.keras")
    for given in (source, convert_float(source)):
        outputs = run(given, mode=INT4)
        (sparsity,) = [invariant for invariant in outputs.invariants if invariant.name == "sparsity"]
        assert sparsity.passed
        assert "dense" in sparsity.detail
        zeros = next(weight.zeros for weight in file_of(outputs).weights if weight.tensor.size == 12800)
        assert zeros >= 0.8 * 12800


def targets(tflite: Path, **wanted: Any) -> list[WeightTarget]:
    return [WeightTarget(w, **({"dtype": "float32"} if w.tensor.size < 1024 else wanted)) for w in weights_in(tflite)]


def weights_in(tflite: Path) -> Any:
    return TfliteFile.read(tflite).weights


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"dtype": "int8"}, "is int4 and was to be int8"),
        ({"dtype": "int4", "block_size": 32}, "has blocks of 0 weights and was to have 32"),
        ({"dtype": "int4", "per_channel": False}, "has 16 scales and was to have 1"),
    ],
)
def test_weights_that_are_not_as_planned_break_the_invariant(
    run: Run, tflite: Path, wanted: dict[str, Any], problem: str
) -> None:
    made = file_of(run(tflite, mode=INT4))
    assert weights(made, targets(tflite, dtype="int4")).passed
    invariant = weights(made, targets(tflite, **wanted))
    assert not invariant.passed
    assert problem in invariant.detail


def test_weights_of_another_model_break_the_invariant(run: Run, tflite: Path, outliers: Path) -> None:
    made = file_of(run(tflite, mode=INT4))
    planned = targets(tflite, dtype="int4")
    dense = next(target for target in planned if target.weight.tensor.size == 12800)
    data = np.frombuffer(dense.weight.tensor.buffer, np.float32) * np.float32(1.1)
    other = replace(dense.weight.tensor, buffer=memoryview(data.tobytes()))
    changed = replace(dense, weight=replace(dense.weight, tensor=other))
    invariant = weights(made, [changed if target is dense else target for target in planned])
    assert not invariant.passed
    assert "values that are not those of the float file, rounded" in invariant.detail
    missing = weights(TfliteFile.read(outliers), planned)
    assert "is not in the file" in missing.detail


def test_no_tensorflow_is_loaded_for_a_tflite_file(tflite: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from squeezeflow.core.step import ArtifactPath, StepInputs
from squeezeflow.quantizer import ai_edge
from squeezeflow.v1 import technique_pb2
inputs = StepInputs(artifacts={{"model": ArtifactPath({artifact(tflite).kind}, Path({str(tflite)!r}))}},
                    workdir=Path({str(tmp_path)!r}))
ai_edge.run(technique_pb2.Quantize(mode={INT4}), inputs, lambda *_, **__: None)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "model.tflite").exists()


def test_layers_of_a_file_are_named_by_its_tensors(tflite: Path) -> None:
    file = TfliteFile.read(tflite)
    listed, owners = layers_of(file)
    assert [(layer.path, layer.class_name) for layer in listed] == [
        ("conv", "CONV_2D"),
        ("depthwise", "DEPTHWISE_CONV_2D"),
        ("conv_2", "CONV_2D"),
        ("dense", "FULLY_CONNECTED"),
        ("probabilities", "FULLY_CONNECTED"),
    ]
    assert set(owners) == {key(weight) for weight in file.weights}
