"""Quantization-aware training of real models: integers in the file, layers that stay float, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models
from tests.unit.quantizer.training import CLASSES, details, file_of, invariant, model_of, refusal, samples, train

from squeezeflow.core.litert import Runner
from squeezeflow.core.step import StepOutputs
from squeezeflow.core.tflite.values import constant_values
from squeezeflow.v1 import technique_pb2

UINT8 = technique_pb2.TrainQuantized.INPUT_OUTPUT_UINT8


def every_kind(layers: Any, x: Any) -> Any:
    """Makes every kind of layer that TFMOT leaves float by itself, and those that it does not."""
    x = layers.ReLU(name="relu")(layers.Conv2D(8, 3, name="conv")(x))
    x = layers.ReLU(6.0, name="relu_2")(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x))
    y = layers.Conv2D(8, 1, use_bias=False, padding="same", name="conv_2")(x)
    y = layers.ReLU(name="relu_3")(layers.BatchNormalization(name="norm")(y))
    z = layers.Conv2D(8, 3, padding="same", dilation_rate=2, activation="swish", name="dilated")(x)
    x = layers.Add(name="sum")([x, y, z])
    x = layers.Concatenate(name="both")([x, layers.Conv2D(4, 1, activation="relu6", name="conv_3")(x)])
    x = layers.Conv2D(8, 1, strides=2, activation="relu", name="strided")(x)
    x = layers.Multiply(name="product")([x, layers.SeparableConv2D(8, 3, padding="same", name="separable")(x)])
    x = layers.Dense(16, name="dense")(layers.GlobalAveragePooling2D(name="pool")(x))
    return layers.Activation("relu", name="relu_4")(layers.BatchNormalization(name="norm_2")(x))


@pytest.fixture(scope="module")
def shape() -> tuple[int, ...]:
    return (14, 14, 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...]) -> StepOutputs:
    return train(tmp_path_factory.mktemp("whole"), model_of(shape, every_kind), samples(shape), input_output=UINT8)


def test_every_operator_of_a_quantizable_model_is_integer(whole: StepOutputs) -> None:
    assert "left float" not in invariant(whole, "integer")
    assert all(layer.applied for layer in whole.layers if layer.class_name != "InputLayer")


def test_every_kernel_is_int8_in_the_file(whole: StepOutputs) -> None:
    weights = file_of(whole).weights
    assert [weight.tensor.dtype for weight in weights] == ["int8"] * 10


def test_relu_becomes_part_of_the_operator_before_it(whole: StepOutputs) -> None:
    names = [operator.name for operator in file_of(whole).main.operators]
    assert not any("RELU" in name for name in names)


def test_a_dense_layer_takes_its_batch_normalization_in(whole: StepOutputs) -> None:
    assert details(whole)["norm_2"] == "folded into dense before training"
    assert details(whole)["norm"] == "int8"


def test_inputs_and_outputs_become_uint8_when_asked(whole: StepOutputs) -> None:
    file = file_of(whole)
    assert {file.main.tensors[index].dtype for index in (*file.inputs, *file.outputs)} == {"uint8"}


def test_the_file_computes_what_the_trained_model_does(whole: StepOutputs) -> None:
    assert whole.metrics["sqnr_db"].value > 25


def test_names_of_the_contract_are_the_sources(whole: StepOutputs) -> None:
    assert whole.contract is not None
    assert whole.artifact is not None
    assert [t.name for t in (*whole.contract.inputs, *whole.contract.outputs)] == ["image", "label"]
    given = samples((14, 14, 1), 3)["x_train"]
    assert Runner(whole.artifact.path, whole.contract).invoke({"image": given})["label"].shape == (3, CLASSES)


def test_training_is_told(whole: StepOutputs) -> None:
    assert any("ranges start from 96 samples of train" in note for note in whole.notes)
    assert any("training figures" in note for note in whole.notes)


def mixed(layers: Any, x: Any) -> Any:
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(6, 3, activation="elu", name="curved")(x)
    x = layers.Conv2D(6, 3, activation="relu", name="conv_2")(x)
    x = layers.Reshape((-1, 6), name="steps")(x)
    return layers.Conv1D(6, 3, activation="relu", name="conv_1d")(x)


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...]) -> StepOutputs:
    selection = technique_pb2.LayerSelection(exclude=["conv_2"])
    return train(tmp_path_factory.mktemp("partly"), model_of(shape, mixed), samples(shape), layers=selection)


def test_layers_left_float_are_listed_with_the_reason(partly: StepOutputs) -> None:
    found = details(partly)
    assert "only right after" in found["norm"]
    assert "activation elu" in found["curved"]
    assert "layers.exclude names conv_2" in found["conv_2"]
    assert "no fake quantization for Conv1D" in found["conv_1d"]
    assert [layer.layer for layer in partly.layers if layer.applied] == ["conv", "steps", "flatten", "label"]


def test_a_layer_behind_a_float_one_is_integer_all_the_same(partly: StepOutputs) -> None:
    kinds = {weight.tensor.size: weight.tensor.dtype for weight in file_of(partly).weights}
    assert kinds[9 * 6] == "int8"  # conv
    assert kinds[9 * 6 * 6] == "float32"  # curved, conv_2
    label = next(weight for weight in file_of(partly).weights if weight.operator == "FULLY_CONNECTED")
    assert label.tensor.dtype == "int8"


def test_operators_left_float_are_named(partly: StepOutputs) -> None:
    assert "left float: " in invariant(partly, "integer")
    assert "CONV_2D" in invariant(partly, "integer")
    assert any(note == "left float: norm, curved, conv_2, conv_1d" for note in partly.notes)


def test_layers_of_nested_models_are_quantized_under_their_paths(tmp_path: Path, shape: tuple[int, ...]) -> None:
    import tf_keras

    def build(layers: Any, x: Any) -> Any:
        backbone = tf_keras.Sequential(
            [layers.Conv2D(6, 3, name="conv", input_shape=shape), layers.ReLU(name="relu")], name="backbone"
        )
        return backbone(x)

    selection = technique_pb2.LayerSelection(include=["backbone/*"])
    outputs = train(tmp_path, model_of(shape, build), samples(shape), layers=selection)
    assert details(outputs)["backbone/conv"] == "int8"
    assert "layers.include names backbone/*" in details(outputs)["label"]
    assert [weight.tensor.dtype for weight in file_of(outputs).weights] == ["int8", "float32"]


def test_a_keras_3_model_with_wide_outputs_is_trained_under_its_own_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "zeta_train": rng.random((96, 6), np.float32) * 100,
        "alpha_train": rng.random((96, 6), np.float32) * 100,
        "y.second_train": rng.random((96, 4), np.float32) * 300,
        "y.first_train": rng.random((96, 4), np.float32),
    }
    outputs = train(tmp_path, models.keras3_two_outputs(tmp_path), arrays, input_output=UINT8)
    assert outputs.contract is not None
    assert [tensor.name for tensor in outputs.contract.inputs] == ["zeta", "alpha"]
    assert [tensor.name for tensor in outputs.contract.outputs] == ["second", "first"]
    # Ranges that started at ±6, as TFMOT has them, would cut most of these values off.
    step = max(file_of(outputs).output_step(index) for index in file_of(outputs).outputs)
    assert step * 255 > 50


def test_a_frozen_layer_keeps_its_weights(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = model_of(shape, lambda layers, x: layers.Conv2D(6, 3, activation="relu", name="conv")(x))
    model.get_layer("conv").trainable = False
    kernel = model.get_layer("conv").kernel.numpy()
    outputs = train(tmp_path, model, samples(shape), fine_tune={"learning_rate": 0.1})
    weight = next(weight for weight in file_of(outputs).weights if weight.operator == "CONV_2D")
    values = np.asarray(weight.values, np.float32) * np.reshape(weight.tensor.scales, (-1, 1, 1, 1))
    np.testing.assert_allclose(values.transpose(1, 2, 3, 0), kernel, atol=np.abs(kernel).max() / 127)


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = models.save(model_of(shape, lambda layers, x: x), tmp_path / "dense.keras")

    def numbers(seed: int) -> list[Any]:
        """Gives every constant and scale; names in the file count up within a process."""
        tensors = file_of(train(tmp_path, model, samples(shape), fine_tune={"seed": seed})).main.tensors
        return [(tensor.scales, None if (v := constant_values(tensor)) is None else v.tolist()) for tensor in tensors]

    first, second, other = numbers(3), numbers(3), numbers(4)
    assert first == second
    assert first != other


def test_a_model_without_a_layer_to_quantize_is_refused_with_the_reasons(tmp_path: Path) -> None:
    selection = technique_pb2.LayerSelection(exclude=["label"])
    error = refusal(tmp_path, models.recurrent_file(tmp_path), None, layers=selection)
    assert error.reason == "UNSUPPORTED_LAYER"
    assert "cell: TFMOT has no fake quantization for LSTM" in str(error)
    assert "label: left out by the request" in str(error)


def test_integer_inputs_are_refused_where_a_layer_stays_float(tmp_path: Path) -> None:
    error = refusal(tmp_path, models.recurrent_file(tmp_path), None, input_output=UINT8)
    assert error.reason == "INVALID_PARAMETER"
    assert "input_output" in str(error)
    assert "cell" in str(error)


@pytest.mark.parametrize("field", ["preserve_sparsity", "preserve_clusters"])
def test_there_must_be_something_to_preserve(tmp_path: Path, field: str, shape: tuple[int, ...]) -> None:
    error = refusal(tmp_path, model_of(shape, lambda layers, x: x), samples(shape), **{field: True})
    assert error.reason == "INVALID_PARAMETER"
    assert "to preserve" in str(error)


def test_training_needs_data(tmp_path: Path, shape: tuple[int, ...]) -> None:
    error = refusal(tmp_path, model_of(shape, lambda layers, x: x), None)
    assert error.reason == "DATA_MISSING"


def test_a_pattern_that_names_no_layer_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    selection = technique_pb2.LayerSelection(exclude=["nothing*"])
    error = refusal(tmp_path, model_of(shape, lambda layers, x: x), samples(shape), layers=selection)
    assert error.reason == "INVALID_PARAMETER"
    assert "nothing*" in str(error)
