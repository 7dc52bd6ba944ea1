"""Losses are decided by request, compile configuration and labels, and never guessed."""

from __future__ import annotations

from typing import Any

import pytest

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit.compile_config import CompileConfig
from squeezeflow.modelkit.losses import LabelledOutput, choose
from squeezeflow.v1 import technique_pb2

NOTHING = CompileConfig()


def output(**changes: Any) -> LabelledOutput:
    settings: dict[str, Any] = {"name": "y", "units": 10, "activation": "softmax", "kind": "class_ids"} | changes
    return LabelledOutput(**settings)


def chosen(*outputs: LabelledOutput, compiled: CompileConfig = NOTHING, **request: Any) -> list[tuple[str, bool]]:
    return [(c.loss, c.from_logits) for c in choose(outputs, technique_pb2.FineTune(**request), compiled)]


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        (output(), "sparse_categorical_crossentropy"),
        (output(kind="one_hot", binary_values=True, unit_values=True), "categorical_crossentropy"),
        (output(activation="sigmoid", units=1), "binary_crossentropy"),
        (output(activation="sigmoid", kind="values", binary_values=True, unit_values=True), "binary_crossentropy"),
        (output(activation="linear", units=1, kind="values"), "mean_squared_error"),
        (output(activation="tanh", units=3, kind="values"), "mean_squared_error"),
    ],
)
def test_the_loss_follows_from_output_and_labels(given: LabelledOutput, loss: str) -> None:
    assert chosen(given) == [(loss, False)]


def test_the_request_wins_over_the_compile_configuration_and_that_over_inference() -> None:
    values = output(activation="linear", units=1, kind="values")
    compiled = CompileConfig(loss="mean_absolute_error")
    assert chosen(values, compiled=compiled) == [("mean_absolute_error", False)]
    assert chosen(values, compiled=compiled, loss="huber") == [("huber", False)]


def test_where_a_loss_is_from_is_told() -> None:
    (inferred,) = choose([output()], technique_pb2.FineTune(), NOTHING)
    assert inferred.describe() == (
        "fine-tuning output y with sparse_categorical_crossentropy, from_logits false "
        "(inferred from softmax output and class_ids labels)"
    )


def test_a_linear_output_with_classes_is_refused_until_the_caller_says_what_it_is() -> None:
    for unclear in (output(activation="linear"), output(activation="")):
        with pytest.raises(SqueezeflowError, match=r"fine_tune\.from_logits \(--from-logits\)") as refusal:
            chosen(unclear)
        assert refusal.value.reason == "INVALID_PARAMETER"
        assert refusal.value.metadata["field"] == "fine_tune.from_logits"
        assert chosen(unclear, from_logits=True) == [("sparse_categorical_crossentropy", True)]
        assert chosen(unclear, from_logits=False) == [("sparse_categorical_crossentropy", False)]


def test_a_compile_configuration_with_logits_is_enough_for_a_linear_output() -> None:
    logits = CompileConfig(loss="sparse_categorical_crossentropy", from_logits=True)
    assert chosen(output(activation="linear"), compiled=logits) == [("sparse_categorical_crossentropy", True)]
    # False is what a loss given by its name says without anybody having thought of it.
    forgotten = CompileConfig(loss="sparse_categorical_crossentropy", from_logits=False)
    with pytest.raises(SqueezeflowError, match="from_logits"):
        chosen(output(activation="linear"), compiled=forgotten)


def test_logits_are_refused_where_every_output_holds_probabilities() -> None:
    with pytest.raises(SqueezeflowError, match="ends in softmax"):
        chosen(output(), from_logits=True)
    both = chosen(output(), output(name="z", activation="linear"), from_logits=True)
    assert [from_logits for _, from_logits in both] == [False, True]


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        (output(), "categorical_crossentropy"),
        (output(), "mean_squared_error"),
        (output(kind="one_hot", binary_values=True, unit_values=True), "sparse_categorical_crossentropy"),
        (output(units=1, activation="sigmoid"), "sparse_categorical_crossentropy"),
        (output(kind="values"), "categorical_crossentropy"),
        (output(kind="values", activation="sigmoid"), "binary_crossentropy"),
    ],
)
def test_a_requested_loss_that_does_not_fit_the_labels_is_refused(given: LabelledOutput, loss: str) -> None:
    with pytest.raises(SqueezeflowError, match=r"--loss") as refusal:
        chosen(given, loss=loss)
    assert refusal.value.reason == "INVALID_PARAMETER"
    assert refusal.value.metadata["field"] == "fine_tune.loss"


def test_a_compiled_cross_entropy_takes_the_other_spelling_of_the_labels() -> None:
    compiled = CompileConfig(loss="categorical_crossentropy", from_logits=False)
    (choice,) = choose([output()], technique_pb2.FineTune(), compiled)
    assert choice.loss == "sparse_categorical_crossentropy"
    assert "the compile configuration says categorical_crossentropy, the labels are class_ids" in choice.describe()


def test_a_compiled_regression_loss_on_class_ids_is_refused() -> None:
    with pytest.raises(SqueezeflowError, match="mean_squared_error"):
        chosen(output(), compiled=CompileConfig(loss="mean_squared_error"))


def test_a_compiled_loss_that_is_not_known_is_inferred_anew() -> None:
    assert chosen(output(), compiled=CompileConfig(loss="my_loss")) == [("sparse_categorical_crossentropy", False)]
