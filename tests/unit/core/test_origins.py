"""Where a wrong output begins: the first NaN, the operator after which values are off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from tests.layer_models import layer_models

from squeezeflow.core import contracts
from squeezeflow.core.invariants import origins
from squeezeflow.core.invariants.origins import Node
from squeezeflow.core.litert import tracing
from squeezeflow.core.litert.tracing import Trace, UntraceableError
from squeezeflow.core.tflite import TfliteFile

RANDOM = np.random.default_rng(5)
SIZE = (1, 4, 4, 3)
NAMES = ("conv", "norm", "relu", "pool", "dense")


def chain(names: Sequence[str] = NAMES) -> list[Node]:
    """Gives nodes that take one another in a row, `conv` the input."""
    return [
        Node(name, name.upper(), f"net/{name}/Op", name, (names[at - 1],) if at else ())
        for at, name in enumerate(names)
    ]


def truth() -> dict[str, np.ndarray]:
    return {name: RANDOM.normal(size=SIZE).astype(np.float32) for name in NAMES}


def off_by(values: Mapping[str, np.ndarray], errors: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Gives the values, each with a relative error of its own."""
    return {
        name: array + np.float32(errors.get(name, 0.0)) * np.float32(np.linalg.norm(array) / np.sqrt(array.size))
        for name, array in values.items()
    }


def told(errors: Mapping[str, float], *, left_out: Sequence[str] = ()) -> str:
    expected = truth()
    known = {name: [values] for name, values in expected.items() if name not in left_out}
    return origins.where_off(
        chain(), off_by(expected, errors).get, lambda node: known.get(str(node.key), ()), {"dense"}
    )


def test_only_what_an_output_is_computed_from_is_looked_at() -> None:
    nodes = [*chain(), Node("other", "OTHER", "net/other/Op", "other", ("relu",))]
    assert [node.key for node in origins.ancestors(nodes, {"relu"})] == ["conv", "norm", "relu"]
    assert [node.key for node in origins.ancestors(nodes, {"other"})] == ["conv", "norm", "relu", "other"]


def test_the_first_infinity_and_the_first_nan_are_told_with_tensor_and_layer() -> None:
    values = truth()
    values["norm"][0, 1, 1, 0] = np.inf
    values["relu"][0, 1, 1, 0] = values["pool"][0, 0, 0, 0] = np.nan
    text = origins.first_not_finite(chain(), values.get, lambda node: "")
    assert text == (
        "the first infinity is in tensor net/norm/Op of NORM in layer norm, "
        "the first NaN is in tensor net/relu/Op of RELU in layer relu"
    )


def test_a_constant_that_is_not_finite_is_told_with_what_takes_it() -> None:
    values = truth()
    values["norm"][...] = np.nan
    text = origins.first_not_finite(chain(), values.get, lambda node: "the constant w" if node.key == "norm" else "")
    assert text.endswith("in layer norm, which takes the constant w")


def test_integers_and_what_cannot_be_read_are_finite() -> None:
    assert origins.first_not_finite(chain(), {"conv": np.zeros(3, np.int8)}.get, lambda node: "") == ""


def test_the_operator_after_which_values_are_off_is_told() -> None:
    text = told({"relu": 0.5, "pool": 0.6, "dense": 0.4})
    assert text == (
        "the error arises in tensor net/relu/Op of RELU in layer relu "
        "(relative error 0.5, 0 before it; 5 of 5 tensors compared)"
    )


def test_an_error_that_grows_later_is_told_twice() -> None:
    text = told({"norm": 0.1, "relu": 0.1, "pool": 0.9, "dense": 0.9})
    assert "first shows in tensor net/norm/Op of NORM in layer norm (relative error 0.1, 0 before it)" in text
    assert "grows most in tensor net/pool/Op of POOL in layer pool (relative error 0.9, 0.1 before it" in text


def test_an_error_goes_through_tensors_that_have_no_counterpart() -> None:
    text = told({"norm": 0.5, "relu": 0.5, "pool": 0.5, "dense": 0.5}, left_out=["relu", "pool"])
    assert "arises in tensor net/norm/Op" in text
    assert "3 of 5 tensors compared" in text


def test_an_error_that_nothing_after_it_has_was_another_tensor() -> None:
    text = told({"conv": 1.4, "pool": 0.05, "dense": 0.05})
    assert "arises in tensor net/pool/Op" in text
    assert "4 of 5 tensors compared" in text


def test_of_fused_operations_the_one_that_agrees_best_is_compared() -> None:
    expected = truth()
    nodes = chain()
    known = {name: [RANDOM.normal(size=SIZE), values] for name, values in expected.items()}
    wrong = off_by(expected, {"dense": 0.3}).get
    assert "in layer dense" in origins.where_off(nodes, wrong, lambda node: known[str(node.key)], {"dense"})


def test_nan_is_the_largest_error() -> None:
    assert "arises in tensor net/pool/Op" in told({"pool": np.nan, "dense": np.nan})


@pytest.mark.parametrize("left_out", [NAMES, NAMES[:-1]])
def test_where_only_outputs_have_counterparts_no_layer_is_guessed(left_out: Sequence[str]) -> None:
    assert told({"dense": 0.5}, left_out=left_out) == origins.UNTOLD


def test_where_the_sample_agrees_no_layer_is_accused() -> None:
    assert "gives what the source does" in told({})


def test_the_tensors_of_a_file_are_read_as_real_values_in_order_of_execution() -> None:
    path = layer_models() / "cnn_int8.tflite"
    file, contract = TfliteFile.read(path), contracts.foreign(path)
    (given,) = contract.inputs
    sample = RANDOM.random((1, *given.shape[1:]), np.float32)
    trace, nodes = Trace(file, contract, {given.name: sample}), origins.file_nodes(file)
    read = {node.operator: trace.value(node.key) for node in nodes}
    np.testing.assert_allclose(read["QUANTIZE"], sample, atol=0.01)
    assert read["SOFTMAX"].sum() == pytest.approx(1, abs=0.05)
    assert [node.layer for node in nodes if node.operator == "CONV_2D"] == ["first, re_lu", "second"]
    assert set(trace.like([nodes[1], Node(0, "", "of another file", "", ())])) == {nodes[1].key}


def test_the_logarithm_of_negative_numbers_is_found_in_the_file() -> None:
    path = layer_models() / "not_finite.tflite"
    file, contract = TfliteFile.read(path), contracts.foreign(path)
    trace = Trace(file, contract, {contract.inputs[0].name: np.full((1, 4), -1, np.float32)})
    text = origins.first_not_finite(origins.file_nodes(file), trace.value, origins.file_constants(file))
    assert text.startswith("the first NaN is in tensor ")
    assert " of LOG" in text


def test_more_activations_than_the_bound_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "TRACE_BYTES", 1000)
    path = layer_models() / "cnn_float32.tflite"
    contract = contracts.foreign(path)
    sample = {t.name: np.zeros([max(1, size) for size in t.shape], np.float32) for t in contract.inputs}
    with pytest.raises(UntraceableError, match="MiB"):
        Trace(TfliteFile.read(path), contract, sample)
