"""What the recipes of a job are."""

from __future__ import annotations

import pytest
from tests.unit.orchestrator.builders import cluster, convert, export, prune, quantize, recipe, spec_of, train_quantized

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.orchestrator.recipes import check_chain, export_formats, merge_fine_tune, resolve
from squeezeflow.v1 import jobs_pb2, technique_pb2


def refusal(*recipes: jobs_pb2.Recipe) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        resolve(spec_of(*recipes))
    assert caught.value.reason == "INVALID_PARAMETER"
    return caught.value


@pytest.mark.parametrize(("data", "names"), [(True, ["dynamic", "int8"]), (False, ["dynamic"])])
def test_a_job_without_recipes_gets_dynamic_and_with_data_int8_too(data: bool, names: list[str]) -> None:
    assert [r.name for r in resolve(spec_of(data=data))] == names


def test_two_recipes_of_one_name_are_refused_with_the_field() -> None:
    error = refusal(recipe("mine", convert()), recipe("mine", quantize()))
    assert "mine" in error.message
    assert error.fields[0][0] == "spec.recipes[1]"


@pytest.mark.parametrize(
    ("techniques", "words"),
    [
        ([prune()], ["prune", "no TFLite"]),
        ([convert(), quantize()], ["quantize", "convert"]),
        ([quantize(), prune(), convert()], ["prune", "quantize"]),
        ([export(), prune(), convert()], ["prune", "SavedModel"]),
        ([export(), export("FORMAT_KERAS"), convert()], ["export", "SavedModel"]),
        ([convert(), export()], ["export", "convert"]),
        ([export(), cluster(), convert()], ["cluster", "SavedModel"]),
        ([export(), train_quantized()], ["train_quantized", "SavedModel"]),
        ([train_quantized(), quantize()], ["quantize", "train_quantized"]),
        ([cluster()], ["cluster", "no TFLite"]),
    ],
)
def test_a_chain_that_does_not_fit_is_refused_naming_recipe_and_technique(
    techniques: list[technique_pb2.Technique], words: list[str]
) -> None:
    message = refusal(recipe("mine", *techniques)).message
    assert all(word in message for word in ["mine", *words]), message


@pytest.mark.parametrize(
    "techniques",
    [
        [convert()],
        [prune(), quantize()],
        [prune(), prune(), convert()],
        [export("FORMAT_KERAS"), prune(), convert()],
        [prune(), export(), convert()],
        [prune(), cluster(), train_quantized()],
        [export(), prune(one_shot=True), cluster(one_shot=True), quantize()],
        [convert(), quantize("MODE_INT4")],
        [convert(), quantize(backend="BACKEND_AI_EDGE")],
    ],
)
def test_a_chain_that_fits_is_taken(techniques: list[technique_pb2.Technique]) -> None:
    check_chain(recipe("mine", *techniques))


def test_the_name_of_the_baseline_is_kept_for_it() -> None:
    assert "float32" in refusal(recipe("float32", quantize())).message
    assert resolve(spec_of("float32"))[0].name == "float32"


def test_defaults_are_filled_in() -> None:
    (resolved,) = resolve(spec_of(recipe("mine", prune(), quantize("MODE_INT8"))))
    assert resolved.techniques[0].prune.HasField("sparsity")
    assert resolved.techniques[0].prune.sparsity == 0.8
    assert not resolved.techniques[0].prune.HasField("fine_tune")
    assert resolved.techniques[1].quantize.calibration_samples == 200


def test_a_technique_takes_from_the_job_what_it_does_not_say_itself() -> None:
    job = technique_pb2.FineTune(epochs=7, loss="mean_squared_error")
    (resolved,) = resolve(spec_of(recipe("mine", prune(fine_tune={"epochs": 3}), convert()), fine_tune=job))
    merged = resolved.techniques[0].prune.fine_tune
    assert (merged.epochs, merged.loss, merged.HasField("optimizer")) == (3, "mean_squared_error", False)


def test_an_empty_word_counts_as_unset() -> None:
    merged = merge_fine_tune(technique_pb2.FineTune(loss="huber"), technique_pb2.FineTune(loss=""))
    assert merged.loss == "huber"


def test_a_job_wide_fine_tune_leaves_untrained_recipes_alone() -> None:
    plain, tuned = (resolve(spec_of("int8", **kw)) for kw in ({}, {"fine_tune": {"epochs": 9}}))
    assert plain == tuned


def test_the_request_is_not_changed() -> None:
    spec = spec_of("prune", fine_tune={"epochs": 9})
    before = spec.SerializeToString(deterministic=True)
    resolve(spec)
    assert spec.SerializeToString(deterministic=True) == before


def test_an_export_format_counts_once() -> None:
    exports = [{"format": "FORMAT_SAVED_MODEL"}, {}, {"format": "FORMAT_KERAS"}]
    assert list(export_formats(spec_of(exports=exports))) == ["savedmodel", "keras"]
