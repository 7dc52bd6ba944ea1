"""The graph of steps of a job."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from tests.unit.orchestrator.builders import (
    ALL_DATA,
    ALL_RECIPES,
    candidate_names,
    cluster,
    convert,
    description,
    export,
    nodes_of,
    plan_of,
    prune,
    quantize,
    recipe,
    spec_of,
    train_quantized,
)

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.orchestrator.plan import BENCHMARK, EVALUATE, DataFacts, Plan, make_plan
from squeezeflow.orchestrator.recipes import resolve
from squeezeflow.v1 import artifact_pb2, jobs_pb2, technique_pb2

NO_TEST = DataFacts(train=True, calibration=True)


def random_recipe(rng: random.Random, name: str) -> jobs_pb2.Recipe:
    before = [prune(sparsity=rng.choice([0.5, 0.8])) for _ in range(rng.randrange(3))]
    if rng.random() < 0.3:
        before.append(export())
    return recipe(name, *before, rng.choice([convert(), quantize(), quantize("MODE_INT8")]))


def random_plans() -> list[tuple[jobs_pb2.JobSpec, Plan]]:
    made = []
    for seed in range(60):
        rng = random.Random(seed)
        recipes = [random_recipe(rng, f"r{index}") for index in range(rng.randrange(1, 6))]
        exports = [{}] if rng.random() < 0.5 else []
        facts = DataFacts(*(rng.random() < 0.7 for _ in range(3)))
        spec = spec_of(*recipes, exports=exports)
        made.append((spec, plan_of(spec, facts)))
    return made


PLANS = random_plans()


def test_every_node_comes_after_those_it_needs_or_waits_for() -> None:
    for _, plan in PLANS:
        seen: set[str] = set()
        for node in plan.nodes:
            assert seen.issuperset(node.needs), node
            assert seen.issuperset(node.after), node
            seen.add(node.id)


def test_no_call_is_made_twice_and_none_is_made_for_nothing() -> None:
    for _, plan in PLANS:
        calls = [(node.technique, str(node.params), node.parent, node.baseline) for node in plan.nodes]
        assert len(set(calls)) == len(calls) == len({node.id for node in plan.nodes})
        used = {step for candidate in plan.candidates for step in candidate.steps}
        assert used == {node.id for node in plan.nodes}


def test_the_baseline_is_first_and_every_recipe_has_its_candidate_in_order() -> None:
    for spec, plan in PLANS:
        assert candidate_names(plan) == ["float32", *(r.name for r in spec.recipes)]
        assert [c.requested for c in plan.candidates] == [False] + [True] * len(spec.recipes)


def test_benchmarks_wait_for_all_that_computes_and_for_each_other() -> None:
    for _, plan in PLANS:
        position = {node.id: index for index, node in enumerate(plan.nodes)}
        benchmarks = [node for node in plan.nodes if node.technique == BENCHMARK]
        computing = {node.id for node in plan.nodes if node.technique != BENCHMARK}
        assert set(benchmarks[0].after) == computing
        for before, node in pairwise(benchmarks):
            assert node.after == (before.id,)
        assert {position[b.id] for b in benchmarks} == set(range(len(computing), len(plan.nodes)))


def test_a_plan_depends_on_the_request_alone() -> None:
    for (_, first), (_, again) in zip(PLANS, random_plans(), strict=True):
        assert first == again


def test_recipes_share_the_steps_that_they_begin_with() -> None:
    plan = plan_of(spec_of(*ALL_RECIPES))
    assert len(nodes_of(plan, "prune")) == 1
    assert len(nodes_of(plan, "convert")) == 2  # of the source, of the pruned model
    assert len(nodes_of(plan, "quantize")) == 3
    assert len(nodes_of(plan, EVALUATE)) == len(nodes_of(plan, BENCHMARK)) == 5


def test_equal_recipes_under_two_names_are_made_once() -> None:
    plan = plan_of(spec_of(recipe("one", quantize()), recipe("two", quantize())))
    assert plan.candidates[1].steps == plan.candidates[2].steps


def test_a_requested_baseline_is_marked_and_not_made_twice() -> None:
    plan = plan_of(spec_of("dynamic", "float32"))
    assert candidate_names(plan) == ["float32", "dynamic"]
    assert [c.requested for c in plan.candidates] == [True, True]


def test_only_candidates_are_compared_with_the_baseline() -> None:
    plan = plan_of(spec_of("dynamic"))
    baseline, dynamic = plan.candidates
    nodes = {node.id: node for node in plan.nodes}
    for candidate, compared in ((baseline, ""), (dynamic, baseline.final)):
        for step in candidate.steps[1:]:
            assert nodes[step].parent == candidate.final
            assert nodes[step].baseline == compared


def test_without_labelled_test_arrays_nothing_is_evaluated() -> None:
    assert nodes_of(plan_of(spec_of("dynamic"), NO_TEST), EVALUATE) == []


def test_ids_tell_models_data_signatures_and_parameters_apart() -> None:
    base = plan_of(spec_of("prune")).candidates[1].final
    others = [spec_of("prune", data=False), spec_of(recipe("prune", prune(sparsity=0.5), convert()))]
    signature, scaled = spec_of("prune"), spec_of("prune")
    signature.model.signature = "other"
    scaled.data.scale.append(2.0)
    finals = {base, *(plan_of(spec).candidates[1].final for spec in [*others, signature, scaled])}
    assert len(finals) == 5


def test_exports_are_made_from_the_last_stage_that_is_still_a_model() -> None:
    plan = plan_of(spec_of("dynamic", "prune", exports=[{"format": "FORMAT_KERAS"}]))
    nodes = {node.id: node for node in plan.nodes}
    exported = {c.recipe: nodes[c.exports["keras"]] for c in plan.candidates}
    assert exported["float32"] is exported["dynamic"]
    assert exported["dynamic"].parent == ""
    assert nodes[exported["prune"].parent].technique == "prune"


def refusals(plan: Plan) -> dict[str, str]:
    nodes = {node.id: node for node in plan.nodes}
    return {
        candidate.recipe: nodes[step].refusal.reason
        for candidate in plan.candidates
        for step in candidate.steps
        if nodes[step].refusal is not None
    }


def test_a_technique_that_lacks_its_data_is_refused_and_no_other() -> None:
    assert refusals(plan_of(spec_of(*ALL_RECIPES, data=False), DataFacts())) == {
        "int8": "DATA_MISSING",
        "prune": "DATA_MISSING",
        "prune-int8": "DATA_MISSING",
    }
    assert refusals(plan_of(spec_of(*ALL_RECIPES), DataFacts(calibration=True))) == {
        "prune": "DATA_MISSING",
        "prune-int8": "DATA_MISSING",
    }
    assert refusals(plan_of(spec_of(*ALL_RECIPES))) == {}


def test_a_technique_that_does_not_take_the_format_fails_its_candidate_only() -> None:
    plan = plan_of(spec_of("dynamic", "prune"), unsupported={"prune": "it is no Keras model"})
    assert refusals(plan) == {"prune": "UNSUPPORTED_INPUT"}
    refused = next(node for node in plan.nodes if node.refusal is not None)
    assert "it is no Keras model" in refused.refusal.message


def test_a_model_without_a_baseline_is_refused_as_a_whole() -> None:
    with pytest.raises(SqueezeflowError, match="string inputs") as caught:
        plan_of(spec_of("dynamic"), unsupported={"convert": "string inputs"})
    assert caught.value.reason == "UNSUPPORTED_INPUT"


def test_a_saved_model_is_not_exported_as_keras() -> None:
    spec = spec_of("dynamic", exports=[{"format": "FORMAT_KERAS"}])
    with pytest.raises(SqueezeflowError, match="SavedModel") as caught:
        plan_of(spec, ALL_DATA, kind=artifact_pb2.ARTIFACT_KIND_SAVED_MODEL)
    assert caught.value.reason == "UNSUPPORTED_INPUT"


def test_a_saved_model_with_keras_layers_is_exported_as_keras() -> None:
    spec = spec_of("dynamic", exports=[{"format": "FORMAT_KERAS"}])
    described = description(artifact_pb2.ARTIFACT_KIND_SAVED_MODEL)
    described.layers.add(name="dense")
    plan = make_plan(spec, resolve(spec), described, ALL_DATA)
    assert all("keras" in candidate.exports for candidate in plan.candidates)


def refused_nodes(plan: Plan, technique: str) -> list[str | None]:
    """Gives for every node of a technique why it cannot be called."""
    return [node.refusal.reason if node.refusal else None for node in plan.nodes if node.technique == technique]


@pytest.mark.parametrize("technique", [prune(), cluster(), train_quantized()])
def test_what_trains_needs_train_arrays(technique: technique_pb2.Technique) -> None:
    last = [] if technique.HasField("train_quantized") else [convert()]
    plan = plan_of(spec_of(recipe("mine", technique, *last)), DataFacts(calibration=True))
    assert refused_nodes(plan, technique.WhichOneof("technique") or "") == ["DATA_MISSING"]


@pytest.mark.parametrize("mode", ["MODE_INT8", "MODE_INT8_IO", "MODE_UINT8_IO", "MODE_INT16X8"])
def test_integer_modes_need_something_to_calibrate_with(mode: str) -> None:
    plan = plan_of(spec_of(recipe("mine", quantize(mode))), DataFacts())
    assert refused_nodes(plan, "quantize") == ["DATA_MISSING"]


@pytest.mark.parametrize("technique", [prune(one_shot=True), cluster(one_shot=True)])
def test_what_works_at_once_needs_no_data_and_takes_a_saved_model(technique: technique_pb2.Technique) -> None:
    name = technique.WhichOneof("technique") or ""
    spec = spec_of(recipe("mine", technique, convert()))
    kind = artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
    plan = plan_of(spec, DataFacts(), kind=kind, unsupported={name: "no layers"})
    assert refused_nodes(plan, name) == [None]


def test_an_export_takes_the_last_stage_that_is_not_tflite() -> None:
    recipes = [recipe("four", prune(), convert(), quantize("MODE_INT4")), recipe("trained", prune(), train_quantized())]
    plan = plan_of(spec_of(*recipes, exports=[{}]), ALL_DATA)
    (pruned,) = nodes_of(plan, "prune")
    assert {node.parent for node in plan.nodes if node.technique == "export"} == {"", pruned}
