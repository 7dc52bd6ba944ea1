"""A file is proved by what it computes; a wrong file is refused with the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tests import models

from squeezeflow.core import contracts
from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import conversion, keras_source, matching, proof
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.v1 import artifact_pb2, contract_pb2


def source_of(path: Path) -> Source:
    kind = artifact_pb2.ARTIFACT_KIND_KERAS if path.suffix else artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
    return open_source(ArtifactPath(kind, path))


def converted(source: Source, target: Path) -> Path:
    conversion.convert(source.converter(), target)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proof")


@pytest.fixture(scope="module")
def cnn(folder: Path) -> Source:
    return source_of(models.tf_keras_file(folder))


@pytest.fixture(scope="module")
def cnn_tflite(cnn: Source, folder: Path) -> Path:
    return converted(cnn, folder / "cnn.tflite")


def bound_images(folder: Path, source: Source) -> BoundData:
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    path = folder / "data.npz"
    np.savez(path, x_test=images, y_test=np.arange(40) % 10, classes=[f"label {index}" for index in range(10)])
    return Dataset.open(path).bind(source.contract, scale=[1 / 255])


def test_a_conversion_is_proved_on_synthetic_samples_where_there_is_no_data(cnn: Source, cnn_tflite: Path) -> None:
    proved = proof.prove(cnn, cnn_tflite, bound=None, mode="float32")
    assert [(invariant.name, invariant.passed) for invariant in proved.invariants] == [
        ("finite", True),
        ("alive", True),
        ("close", True),
    ]
    assert proved.metrics["max_abs_diff"].value < 1e-6
    assert proved.metrics["sqnr_db"].value > 100
    assert proved.metrics["sqnr_db"].samples == 32
    assert proved.notes == ("compared on 32 synthetic samples (seed 0)",)
    (image,) = proved.contract.inputs
    assert (image.name, image.signature_name, image.dtype) == ("image", "image", "float32")
    assert list(image.shape) == [-1, 28, 28, 1]


def test_the_jobs_data_is_used_and_its_labels_and_affine_go_into_the_contract(
    cnn: Source, cnn_tflite: Path, tmp_path: Path
) -> None:
    proved = proof.prove(cnn, cnn_tflite, bound=bound_images(tmp_path, cnn), mode="float32", seed=3)
    assert proved.notes == ("compared on 32 samples of test (seed 3)",)
    assert list(proved.contract.labels)[:2] == ["label 0", "label 1"]
    assert list(proved.contract.inputs[0].affine.scale) == [1 / 255]


def test_golden_samples_let_a_contract_be_checked_without_its_source(cnn: Source, cnn_tflite: Path) -> None:
    contract = proof.prove(cnn, cnn_tflite, bound=None, mode="float32").contract
    assert len(contract.golden_samples) == 4
    again = contracts.decode(contracts.encode(contract))
    runner = Runner(cnn_tflite, again)
    for sample in again.golden_samples:
        found = runner.invoke({name: contracts.array(value) for name, value in sample.inputs.items()})
        expected = contracts.array(sample.outputs["probabilities"])
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)


def test_samples_of_more_than_64_kib_do_not_become_golden() -> None:
    contract = contract_pb2.Contract()
    samples = {"x": np.zeros((4, 20_000), np.float32)}
    proof.add_golden_samples(contract, samples, {"y": np.zeros((4, 2), np.float32)})
    assert not contract.golden_samples


def test_a_file_of_other_weights_is_refused_with_the_numbers(cnn: Source, cnn_tflite: Path) -> None:
    other = models.tf_keras_cnn()
    other.get_layer("probabilities").bias.assign(np.arange(10) * 0.5)
    with pytest.raises(SqueezeflowError) as caught:
        proof.prove(keras_source.of_model(other), cnn_tflite, bound=None, mode="float32")
    assert caught.value.reason == "OUTPUT_MISMATCH"
    assert "max abs diff" in caught.value.metadata["close"]
    assert "limit 0.002" in caught.value.metadata["close"]


def test_nan_is_refused_as_nan(tmp_path: Path) -> None:
    source = source_of(models.gives_nan(tmp_path))
    with pytest.raises(SqueezeflowError) as caught:
        proof.prove(source, converted(source, tmp_path / "nan.tflite"), bound=None, mode="float32")
    assert caught.value.reason == "NON_FINITE_OUTPUT"
    assert "root" in caught.value.message


def test_a_kernel_that_was_zero_in_the_source_may_be_zero(tmp_path: Path) -> None:
    model = models.tf_keras_cnn()
    model.get_layer("dense").kernel.assign(np.zeros((400, 32)))
    model.get_layer("dense").bias.assign(np.ones(32))
    source = keras_source.of_model(model)
    proved = proof.prove(source, converted(source, tmp_path / "zero.tflite"), bound=None, mode="float32")
    assert "as in the source" in proved.invariants[1].detail


def test_a_kernel_that_became_zero_is_refused(cnn: Source, tmp_path: Path) -> None:
    model = models.tf_keras_cnn()
    model.get_layer("probabilities").kernel.assign(np.zeros((32, 10)))
    zeroed = keras_source.of_model(model)
    with pytest.raises(SqueezeflowError) as caught:
        proof.prove(cnn, converted(zeroed, tmp_path / "zero.tflite"), bound=None, mode="int8", min_sqnr_db=0.0)
    assert "has become all zero" in caught.value.metadata["alive"]


def test_dynamic_range_is_judged_by_its_signal_to_noise_ratio(cnn: Source, tmp_path: Path) -> None:
    import tensorflow as tf

    converter = cnn.converter()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    conversion.convert(converter, tmp_path / "dynamic.tflite")
    proved = proof.prove(cnn, tmp_path / "dynamic.tflite", bound=None, mode="dynamic")
    assert 20 < proved.metrics["sqnr_db"].value < 90
    assert "labels flipped" in proved.invariants[2].detail
    with pytest.raises(SqueezeflowError) as caught:
        proof.prove(cnn, tmp_path / "dynamic.tflite", bound=None, mode="dynamic", min_sqnr_db=120)
    assert caught.value.reason == "OUTPUT_MISMATCH"


def test_an_integer_file_has_its_scales_in_the_contract(cnn: Source, tmp_path: Path) -> None:
    import tensorflow as tf

    images = np.random.default_rng(1).uniform(-1, 1, (20, 1, 28, 28, 1)).astype(np.float32)
    converter = cnn.converter()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ({"image": image} for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    conversion.convert(converter, tmp_path / "int8.tflite")
    contract = proof.prove(cnn, tmp_path / "int8.tflite", bound=None, mode="int8").contract
    assert contract.inputs[0].dtype == "int8"
    assert 0.005 < contract.inputs[0].quantization.scale < 0.01
    assert contract.outputs[0].quantization.scale == pytest.approx(1 / 256)
    assert contract.outputs[0].quantization.zero_point == -128


# Names


def names_of(tensors: Iterable[contract_pb2.TensorContract]) -> dict[str, str]:
    return {tensor.name: tensor.signature_name for tensor in tensors}


def two_by_two(tmp_path: Path) -> tuple[Source, Path]:
    source = source_of(models.two_inputs_file(tmp_path))
    return source, converted(source, tmp_path / "two.tflite")


def test_tensors_of_one_shape_are_told_apart(tmp_path: Path) -> None:
    source, path = two_by_two(tmp_path)
    contract = proof.prove(source, path, bound=None, mode="float32").contract
    assert [(tensor.name, tensor.signature_name) for tensor in contract.inputs] == [
        ("zeta", "zeta"),
        ("alpha", "alpha"),
    ]
    assert [(t.name, t.signature_name) for t in contract.outputs] == [("second", "second"), ("first", "first")]


@pytest.mark.parametrize("swapped", [("inputs",), ("outputs",), ("inputs", "outputs")])
def test_values_correct_names_that_are_wrong(swapped: tuple[str, ...], tmp_path: Path) -> None:
    source, path = two_by_two(tmp_path)
    # As a converter does that says `output_0` and `output_1`, and means them the other way round.
    for side in swapped:
        names = getattr(source, f"signature_{side}")
        first, second = names
        names[first], names[second] = names[second], names[first]
    contract = proof.prove(source, path, bound=None, mode="float32").contract
    assert [(tensor.name, tensor.signature_name) for tensor in contract.inputs] == [
        ("zeta", "zeta"),
        ("alpha", "alpha"),
    ]
    assert [(t.name, t.signature_name) for t in contract.outputs] == [("second", "second"), ("first", "first")]


def test_a_file_with_other_names_is_bound_by_position_and_checked_by_value(tmp_path: Path) -> None:
    source = source_of(models.keras3_two_outputs(tmp_path))
    import tensorflow as tf

    # The converter's own way of taking a Keras 3 model calls its outputs output_0 and output_1.
    (tmp_path / "keras3.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(source.model).convert())
    contract = proof.prove(source, tmp_path / "keras3.tflite", bound=None, mode="float32").contract
    assert names_of(contract.outputs) == {"second": "output_0", "first": "output_1"}


def test_a_file_with_another_number_of_outputs_is_refused(cnn_tflite: Path, tmp_path: Path) -> None:
    source, _ = two_by_two(tmp_path)
    with pytest.raises(SqueezeflowError) as caught:
        proof.prove(source, cnn_tflite, bound=None, mode="float32")
    assert caught.value.reason == "OUTPUT_MISMATCH"
    assert "zeta, alpha" in caught.value.message


def test_an_order_that_is_only_a_little_better_is_chance() -> None:
    generator = np.random.default_rng(0)
    tensors = [contract_pb2.TensorContract(name=name, shape=[-1, 8], dtype="float32") for name in ("a", "b")]
    contract = contract_pb2.Contract(inputs=tensors[:1], outputs=tensors)
    for index, tensor in enumerate(contract.outputs):
        tensor.signature_name = f"output_{index}"
    expected = {name: generator.normal(size=(4, 8)) for name in ("a", "b")}
    noise = {name: generator.normal(size=(4, 8)) for name in ("a", "b")}
    found, _ = matching.by_value(contract, lambda _: noise, {"a": np.zeros((4, 8))}, expected)
    assert [tensor.signature_name for tensor in found.outputs] == ["output_0", "output_1"]


def test_a_proof_counts_what_the_file_costs(cnn: Source, cnn_tflite: Path) -> None:
    metrics = proof.prove(cnn, cnn_tflite, bound=None, mode="float32").metrics
    # conv, depthwise, conv_2, dense, probabilities.
    convolutions = 13 * 13 * 8 * 9 + 11 * 11 * 8 * 9 + 5 * 5 * 16 * 9 * 8
    assert metrics["macs"].value == convolutions + 400 * 32 + 32 * 10
    # BatchNormalization is folded: only its bias is left; biases that are zero may be left out or shared.
    assert 14_400 < metrics["parameters"].value <= 14_514 - 3 * 8
    # The image, which stays, and the two largest values in a row; places are multiples of 64 bytes.
    largest = 4 * (28 * 28 + 13 * 13 * 8 + 11 * 11 * 8)
    assert largest <= metrics["arena_peak_bytes"].value < largest + 2 * 64
