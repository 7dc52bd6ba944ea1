"""Promises re-read from real files: each holds where it should, and fails where one number is off."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from tests.layer_models import FER, SPARSITY, layer_models

from squeezeflow.core import contracts, invariants
from squeezeflow.core.datasets import synthetic_inputs
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants import SparsityTarget
from squeezeflow.core.litert import Runner
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.v1 import step_pb2


def file_of(name: str) -> TfliteFile:
    return TfliteFile.read(layer_models() / f"{name}.tflite")


def outputs_of(name: str, count: int = 32) -> dict[str, np.ndarray]:
    path = layer_models() / f"{name}.tflite"
    inputs = synthetic_inputs(contracts.foreign(layer_models() / "cnn_float32.tflite"), count, 0)
    return Runner(path, contracts.foreign(path)).invoke(inputs)


def kernels() -> dict[str, np.ndarray]:
    with np.load(layer_models() / "kernels.npz") as arrays:
        return dict(arrays)


def edited(name: str, tmp_path: Path, size: int, change) -> TfliteFile:
    """Gives a file whose constant of a size was changed in place by `change(values)`."""
    path = layer_models() / f"{name}.tflite"
    data = path.read_bytes()
    weight = next(w for w in TfliteFile.read(path).weights if w.tensor.size == size)
    values = weight.values.copy()
    change(values)
    at = data.index(bytes(weight.tensor.buffer))
    (tmp_path / "edited.tflite").write_bytes(data[:at] + values.tobytes() + data[at + values.nbytes :])
    return TfliteFile.read(tmp_path / "edited.tflite")


# Outputs


def test_finite_outputs_are_counted():
    result = invariants.finite(outputs_of("cnn_float32"))
    assert result.passed
    assert result.name == "finite"
    assert "160 values" in result.detail


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_value_is_found_with_its_place(bad):
    values = np.zeros((4, 3), np.float32)
    values[2, 1] = bad
    result = invariants.finite({"scores": values, "ids": np.zeros(4, np.int64)})
    assert not result.passed
    assert "scores" in result.detail
    assert "[2, 1]" in result.detail


def test_a_model_that_takes_logarithms_of_negative_numbers_is_not_finite():
    path = layer_models() / "not_finite.tflite"
    outputs = Runner(path, contracts.foreign(path)).invoke({"x": np.full((2, 4), -1, np.float32)})
    assert not invariants.finite(outputs).passed


@pytest.mark.parametrize("mode", ["float32", "float16", "dynamic", "int8", "int8_io"])
def test_every_mode_is_close_to_its_source(mode):
    result = invariants.close(outputs_of("cnn_float32"), outputs_of(f"cnn_{mode}"), mode=mode, source="synthetic")
    assert result.passed, result.detail
    assert "32 samples, synthetic" in result.detail


@pytest.mark.parametrize(
    ("mode", "size", "difference", "passed"),
    [
        ("float32", 1.0, 1.9e-3, True),
        ("float32", 1.0, 2.1e-3, False),
        ("float32", 10.0, 1.9e-2, True),
        ("float32", 10.0, 2.1e-2, False),
        ("float32", 0.01, 1.9e-3, True),
        ("float16", 1.0, 9e-3, True),
        ("float16", 1.0, 1.1e-2, False),
    ],
)
def test_floats_are_judged_by_their_largest_difference(mode, size, difference, passed):
    reference = np.full((32, 2), size, np.float64)
    values = reference.copy()
    values[7, 1] += difference
    assert invariants.close({"y": reference}, {"y": values}, mode=mode).passed == passed


@pytest.mark.parametrize(("ratio", "passed"), [(5.1, True), (4.9, False)])
def test_quantized_outputs_are_judged_by_their_noise(ratio, passed):
    reference = np.random.default_rng(0).normal(size=(32, 4))
    noise = np.random.default_rng(1).normal(size=(32, 4))
    noise *= np.sqrt((reference**2).sum() / (noise**2).sum()) * 10 ** (-ratio / 20)
    result = invariants.close({"y": reference}, {"y": reference + noise}, mode="int8")
    assert result.passed == passed
    assert f"SQNR {ratio} dB" in result.detail
    assert "labels flipped" in result.detail


def test_the_least_ratio_can_be_set():
    reference = np.ones((32, 4))
    values = reference + 0.1
    assert invariants.close({"y": reference}, {"y": values}, mode="dynamic", min_sqnr_db=19).passed
    assert not invariants.close({"y": reference}, {"y": values}, mode="dynamic", min_sqnr_db=21).passed


@pytest.mark.parametrize("mode", ["float32", "int8"])
@pytest.mark.parametrize("values", [np.full((32, 2), np.nan), np.ones((32, 3)), None])
def test_nan_another_shape_or_no_output_are_never_close(mode, values):
    outputs = {} if values is None else {"y": values}
    assert not invariants.close({"y": np.ones((32, 2))}, outputs, mode=mode).passed


def test_one_bad_output_among_several_is_named():
    reference = {"good": np.ones((4, 2)), "bad": np.ones((4, 2))}
    result = invariants.close(reference, {"good": np.ones((4, 2)), "bad": np.zeros((4, 2))}, mode="float32")
    assert not result.passed
    assert "output bad: max abs diff 1" in result.detail


# Alive


def test_real_models_are_alive():
    for mode in ("float32", "float16", "dynamic", "int8"):
        result = invariants.alive(
            outputs_of("cnn_float32"),
            outputs_of(f"cnn_{mode}"),
            kernels=file_of(f"cnn_{mode}"),
            source_kernels=kernels(),
        )
        assert result.passed, result.detail
        assert "5 kernels" in result.detail


def test_an_output_that_no_longer_varies_is_dead():
    result = invariants.alive({"y": np.arange(8.0).reshape(4, 2)}, {"y": np.ones((4, 2))})
    assert not result.passed
    assert "output y is constant" in result.detail


def test_an_output_may_be_constant_where_the_sources_is():
    assert invariants.alive({"y": np.ones((4, 2))}, {"y": np.ones((4, 2))}).passed


def test_a_source_that_varies_by_less_than_the_output_can_show_counts_as_constant():
    reference = {"y": np.array([[0.5], [0.502]])}
    still = {"y": np.array([[0.5], [0.5]])}
    assert not invariants.alive(reference, still).passed
    assert invariants.alive(reference, still, output_steps={"y": 1 / 256}).passed


def test_a_kernel_that_has_become_zero_is_found_in_the_file(tmp_path):
    outputs = outputs_of("cnn_float32")
    file = edited("cnn_float32", tmp_path, 4608, lambda values: values.fill(0))
    result = invariants.alive(outputs, outputs, kernels=file, source_kernels=kernels())
    assert not result.passed
    assert "of 4608 weights has become all zero" in result.detail


def test_a_kernel_may_be_zero_where_the_sources_is(tmp_path):
    outputs = outputs_of("cnn_float32")
    file = edited("cnn_float32", tmp_path, 4608, lambda values: values.fill(0))
    source = {**kernels(), "second": np.zeros((3, 3, 16, 32))}
    assert invariants.alive(outputs, outputs, kernels=file, source_kernels=source).passed
    # Without the source's weights nothing can be judged, and that is told.
    assert "not known" in invariants.alive(outputs, outputs, kernels=file).detail


def test_zero_channels_are_reported(tmp_path):
    outputs = outputs_of("cnn_float32")
    file = edited("cnn_float32", tmp_path, 4608, lambda values: values[:3].fill(0))
    result = invariants.alive(outputs, outputs, kernels=file, source_kernels=kernels())
    assert result.passed
    assert "3 output channels are all zero" in result.detail


def test_keras_kernels_are_looked_at_by_name():
    after = {**kernels(), "second": np.zeros((3, 3, 16, 32))}
    assert not invariants.alive({}, {}, kernels=after, source_kernels=kernels()).passed
    assert invariants.alive({}, {}, kernels=kernels(), source_kernels=kernels()).passed


# Sparsity


def targets() -> list[SparsityTarget]:
    return [SparsityTarget(layer, values, SPARSITY) for layer, values in kernels().items()]


def test_the_zeros_that_are_needed_allow_for_rounding():
    assert invariants.needed_zeros(144, 0.8) == 115
    assert invariants.needed_zeros(10, 0.5) == 5
    assert invariants.needed_zeros(7, 0.0) == 0
    assert invariants.needed_zeros(7, 1.0) == 7


@pytest.mark.parametrize(
    "name",
    [*(f"pruned_{mode}" for mode in ("float32", "float16", "dynamic", "int8")), "sparse_float32", "sparse_dynamic"],
)
def test_zeros_are_found_again_in_the_file_of_every_mode(name):
    result = invariants.sparsity(file_of(name), targets())
    assert result.passed, result.detail
    assert "hidden 52429 of 65536 zeros" in result.detail
    assert "not in the file" not in result.detail


@pytest.mark.parametrize("name", ["lstm_float32", "lstm_dynamic", "lstm_int8", "lstm_even_float32", "lstm_even_int8"])
def test_the_kernel_of_a_fused_lstm_is_found_as_four(name):
    kernel = np.load(layer_models() / f"{name.rpartition('_')[0]}_kernel.npy")
    result = invariants.sparsity(file_of(name), [SparsityTarget("lstm", kernel, SPARSITY)])
    assert result.passed, result.detail
    assert f"of {kernel.size} zeros" in result.detail


@pytest.mark.parametrize("name", ["cnn_float32", "cnn_int8"])
def test_a_file_that_was_not_pruned_does_not_pass(name):
    result = invariants.sparsity(file_of(name), targets())
    assert not result.passed
    assert "least 52429" in result.detail


def test_one_zero_less_than_promised_breaks_the_promise(tmp_path):
    def fill_one(values: np.ndarray) -> None:
        values.reshape(-1)[np.flatnonzero(values == 0)[0]] = 0.5

    result = invariants.sparsity(edited("pruned_float32", tmp_path, 4608, fill_one), targets())
    assert not result.passed
    assert "second 3685 of 4608 zeros (0.800), least 3686" in result.detail


def test_a_kernel_that_the_file_does_not_hold_is_told():
    missing = SparsityTarget("branch", np.zeros((7, 7)), 0.5)
    result = invariants.sparsity(file_of("pruned_float32"), [*targets(), missing])
    assert result.passed
    assert "not in the file: branch" in result.detail


def test_finding_none_of_the_kernels_proves_nothing():
    assert not invariants.sparsity(file_of("pruned_float32"), [SparsityTarget("x", np.zeros((7, 7)), 0.5)]).passed


def test_keras_kernels_are_counted_by_layer_name():
    assert invariants.sparsity(kernels(), targets()).passed
    broken = {**kernels(), "hidden": np.ones((2048, 32))}
    assert not invariants.sparsity(broken, targets()).passed


def test_kernels_that_hold_zeros_already_become_targets():
    found = invariants.sparsity_targets(
        {**kernels(), "dense": np.ones((4, 4)), "bias": np.zeros(4), "off": np.zeros((4, 4))}
    )
    assert {target.layer for target in found} == set(kernels())
    assert invariants.sparsity(file_of("pruned_int8"), found).passed


# Integers


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("cnn_int8", "int8"),
        ("cnn_int8_io", "int8_io"),
        ("wide_uint8_io", "uint8_io"),
        ("wide_int16x8", "int16x8"),
        ("lstm_int8", "int8"),
        ("matmul_int8", "int8"),
    ],
)
def test_full_integer_files_are_integer(name, mode):
    result = invariants.integer(file_of(name), mode)
    assert result.passed, result.detail
    assert result.name == "integer"


def test_an_operator_left_float_is_named_and_passes_only_where_it_is_allowed():
    file = file_of("sine_int8")
    refused = invariants.integer(file)
    assert not refused.passed
    assert "not integer: SIN" in refused.detail
    allowed = invariants.integer(file, allowed=["SIN"])
    assert allowed.passed
    assert "left float: SIN" in allowed.detail
    assert invariants.float_operators(file) == ["SIN"]


def test_float_inputs_break_the_promise_of_integer_ones():
    result = invariants.integer(file_of("cnn_int8"), "int8_io")
    assert not result.passed
    assert "float inputs or outputs" in result.detail


def test_ends_of_another_integer_type_break_the_promise() -> None:
    result = invariants.integer(file_of("cnn_int8_io"), "uint8_io")
    assert not result.passed
    assert "inputs or outputs that are not uint8" in result.detail
    assert not invariants.integer(file_of("wide_uint8_io"), "int8_io").passed


def test_int16x8_needs_int16_activations_and_int64_biases() -> None:
    result = invariants.integer(file_of("cnn_int8"), "int16x8")
    assert not result.passed
    assert "is int8" in result.detail
    narrow = invariants.integer(file_of("wide_int16x8_bias32"), "int16x8")
    assert not narrow.passed
    assert "of CONV_2D is int32" in narrow.detail


@pytest.mark.parametrize("name", ["cnn_float32", "cnn_dynamic", "gru_dynamic"])
def test_float_and_hybrid_files_are_not_integer(name):
    assert not invariants.integer(file_of(name)).passed


def test_float_operators_are_counted_in_every_graph():
    assert "TANH" in invariants.float_operators(file_of("gru_dynamic"))
    assert invariants.float_operators(file_of("cnn_int8")) == []


def test_a_weight_of_minus_128_is_not_symmetric(tmp_path):
    def lowest(values: np.ndarray) -> None:
        values.reshape(-1)[5] = -128

    file = edited("cnn_int8", tmp_path, 4608, lowest)
    result = invariants.integer(file)
    assert not result.passed
    assert "holds −128" in result.detail


@pytest.mark.parametrize(
    ("name", "count"),
    [("cnn_dynamic", 2), ("sparse_dynamic", 2), ("lstm_dynamic", 8), ("gru_dynamic", 2), ("edge_dynamic", 1)],
)
def test_large_weights_of_dynamic_range_files_are_int8(name, count):
    result = invariants.dynamic_range(file_of(name))
    assert result.passed, result.detail
    assert f"{count} of {count} weights" in result.detail


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("conv3d_dynamic", "float32 ×3456"),
        ("matmul_left_dynamic", "float32 ×16384"),
        ("lstm_few_dynamic", "float32 ×1600"),
    ],
)
def test_large_weights_that_the_converter_leaves_in_float_are_listed(name, left):
    result = invariants.dynamic_range(file_of(name))
    assert result.passed, result.detail
    assert "left float" in result.detail
    assert left in result.detail


def test_a_float_file_is_not_dynamic_range():
    result = invariants.dynamic_range(file_of("cnn_float32"))
    assert not result.passed
    assert "0 of 2 weights" in result.detail


def test_a_file_that_others_shipped_is_dynamic_range():
    assert invariants.dynamic_range(TfliteFile.read(FER)).passed


# Verdict


def made(name: str, passed: bool) -> step_pb2.Invariant:
    return step_pb2.Invariant(name=name, passed=passed, detail=f"{name} 1 of 2")


def test_invariants_that_hold_are_given_back():
    checked = [made("finite", True), made("close", True)]
    assert invariants.require(checked) == tuple(checked)


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (["finite", "close", "alive"], "NON_FINITE_OUTPUT"),
        (["alive", "close"], "OUTPUT_MISMATCH"),
        (["alive"], "INVARIANT_BROKEN"),
        (["sparsity"], "INVARIANT_BROKEN"),
        (["clusters"], "INVARIANT_BROKEN"),
        (["integer"], "INVARIANT_BROKEN"),
    ],
)
def test_the_worst_failure_gives_the_reason_and_all_give_their_numbers(failed, reason):
    names = ["alive", "sparsity", "clusters", "integer", "close", "finite"]
    with pytest.raises(SqueezeflowError) as caught:
        invariants.require(made(name, name not in failed) for name in names)
    assert caught.value.reason == reason
    assert caught.value.metadata == {name: f"{name} 1 of 2" for name in failed}
    assert "1 of 2" in caught.value.message


# Places


def test_a_broken_detail_names_tensor_and_layer(tmp_path):
    def lowest(values: np.ndarray) -> None:
        values.reshape(-1)[5] = -128

    minus_128 = invariants.integer(edited("cnn_int8", tmp_path, 4608, lowest)).detail
    assert re.search(r"weight \S*second\S* of CONV_2D in layer second holds −128", minus_128)
    sine = invariants.integer(file_of("sine_int8")).detail
    assert re.search(r"SIN ×1 \(tensor \S+\)", sine)
    softmax = invariants.integer(file_of("cnn_float32")).detail
    assert re.search(r"FULLY_CONNECTED ×2 \(tensor \S*hidden\S*, layer hidden\)", softmax)
    few = [dataclasses.replace(target, sparsity=0.99) for target in targets()]
    zeros = invariants.sparsity(file_of("pruned_int8"), few).detail
    assert re.search(r"hidden \d+ of 65536 zeros \([\d.]+\), least \d+ in tensor \S*hidden\S*", zeros)


def test_a_kernel_that_became_zero_is_named_with_its_layer(tmp_path):
    def clear(values: np.ndarray) -> None:
        values[...] = 0

    file = edited("cnn_int8", tmp_path, 4608, clear)
    outputs = {"y": np.arange(4.0)}
    detail = invariants.alive(outputs, outputs, kernels=file, source_kernels={"second": np.ones((3, 3, 16, 32))}).detail
    assert re.search(r"kernel \S*second\S* \(layer second\) of 4608 weights has become all zero", detail)


@pytest.mark.parametrize(("mode", "advised"), [("int8", True), ("float16", False)])
def test_a_lower_ratio_is_advised_only_where_one_is_asked_for(mode: str, advised: bool) -> None:
    far = invariants.close({"y": np.ones((4, 2))}, {"y": np.zeros((4, 2))}, mode=mode)
    with pytest.raises(SqueezeflowError) as caught:
        invariants.require([far])
    assert ("min_sqnr_db" in caught.value.message) == advised
