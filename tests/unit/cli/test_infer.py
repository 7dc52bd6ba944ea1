from __future__ import annotations

import numpy as np
import pytest

from squeezeflow.cli import infer
from squeezeflow.v1 import contract_pb2


@pytest.fixture
def contract() -> contract_pb2.Contract:
    """An integer-only classifier of three labelled classes."""
    made = contract_pb2.Contract(labels=["cat", "dog", "cow"])
    made.inputs.add(name="x", dtype="int8", shape=[-1, 2]).quantization.CopyFrom(
        contract_pb2.Quantization(scale=0.5, zero_point=-3)
    )
    made.outputs.add(name="y", dtype="uint8", shape=[-1, 3], meaning="probabilities").quantization.CopyFrom(
        contract_pb2.Quantization(scale=1 / 256, zero_point=0)
    )
    return made


def test_inputs_are_rounded_to_the_file_s_steps_and_held_in_its_range(contract):
    values = np.array([[0.0, 0.6], [-1000.0, 1000.0]], np.float32)
    steps = infer.quantized(contract, "x", values)
    assert steps.dtype == np.int8
    np.testing.assert_array_equal(steps, [[-3, -2], [-128, 127]])


def test_halves_are_rounded_away_from_zero_as_litert_does(contract):
    values = np.array([[0.25, -0.25], [0.75, -0.75]], np.float32)
    np.testing.assert_array_equal(infer.quantized(contract, "x", values), [[-2, -4], [-1, -5]])


@pytest.mark.parametrize(
    ("wanted", "given", "expected"),
    [
        ([-1, -1, -1, 3], (8, 20, 24, 3), [1, 20, 24, 3]),
        ([-1, -1, -1, 1], (8, 20, 24), [1, 20, 24, 1]),
        ([4, 12], (8, 12), [4, 12]),
        ([-1, -1], (), [1, 1]),
        ([-1], (9,), [1]),
    ],
)
def test_the_contract_is_asked_with_a_sample_of_the_size_that_is_to_be_sent(wanted, given, expected):
    assert infer.one_sample(wanted, given) == expected


def test_float_inputs_go_as_they_are(contract):
    contract.inputs[0].ClearField("quantization")
    contract.inputs[0].dtype = "float32"
    values = np.array([[0.25, 0.5]], np.float32)
    np.testing.assert_array_equal(infer.quantized(contract, "x", values), values)


def test_outputs_are_given_as_real_values(contract):
    real = infer.dequantized(contract, "y", np.array([[0, 64, 128]], np.uint8))
    np.testing.assert_allclose(real, [[0, 0.25, 0.5]])


def test_classes_are_named_with_their_value(contract):
    values = np.array([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]], np.float32)
    assert list(infer.lines(contract, {"y": values})) == ["y[0]  dog  0.7000", "y[1]  cat  0.5000"]


def test_without_labels_classes_have_their_number(contract):
    del contract.labels[:]
    assert list(infer.lines(contract, {"y": np.array([[0.1, 0.9, 0.0]])})) == ["y[0]  class 1  0.9000"]


def test_what_is_no_class_is_shown_as_values(contract):
    contract.outputs[0].meaning = "values"
    assert list(infer.lines(contract, {"y": np.array([[0.5, 2.0, -1.0]])})) == ["y[0]  [ 0.5 2. -1. ]"]


def test_many_samples_are_cut_short_and_say_so(contract):
    shown = list(infer.lines(contract, {"y": np.zeros((30, 3))}))
    assert len(shown) == 21
    assert "10 more" in shown[-1]


@pytest.mark.parametrize(
    ("batch_axis", "total", "expected"), [(-1, 10, 4 << 10), (1, 10, 1), (8, 10, 8)], ids=["free", "one", "eight"]
)
def test_a_call_holds_as_many_samples_as_fit_or_as_the_file_fixes(contract, batch_axis, total, expected):
    contract.inputs[0].shape[0] = batch_axis
    assert infer.batch_size({"x": np.zeros((total, 1024), np.uint8)}, contract) == expected
