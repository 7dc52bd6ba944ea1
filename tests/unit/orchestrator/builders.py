"""Small specs, descriptions, outcomes and records, for tests of the orchestrator's pure parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from squeezeflow.core import recipes as shipped
from squeezeflow.core.canonical import sha256_text
from squeezeflow.orchestrator.plan import DataFacts, Plan, make_plan
from squeezeflow.orchestrator.recipes import resolve
from squeezeflow.orchestrator.record import JobRecord, Outcome
from squeezeflow.v1 import artifact_pb2, errors_pb2, jobs_pb2, model_pb2, step_pb2, technique_pb2

MODEL, DATA = sha256_text("model"), sha256_text("data")
ALL_DATA = DataFacts(train=True, calibration=True, test=True)
ALL_RECIPES = ("dynamic", "int8", "prune", "prune-int8")


def spec_of(*recipes: str | jobs_pb2.Recipe, data: bool = True, **fields: object) -> jobs_pb2.JobSpec:
    """Gives a job's spec; recipes by name or as messages."""
    messages = [shipped.named(recipe) if isinstance(recipe, str) else recipe for recipe in recipes]
    spec = jobs_pb2.JobSpec(model={"artifact": MODEL}, recipes=messages, **fields)
    if data:
        spec.data.artifact = DATA
    return spec


def recipe(name: str, *techniques: technique_pb2.Technique) -> jobs_pb2.Recipe:
    """Gives a recipe of one's own."""
    return jobs_pb2.Recipe(name=name, techniques=techniques)


def convert() -> technique_pb2.Technique:
    return technique_pb2.Technique(convert=technique_pb2.Convert())


def prune(**params: object) -> technique_pb2.Technique:
    return technique_pb2.Technique(prune=technique_pb2.Prune(**params))


def cluster(**params: object) -> technique_pb2.Technique:
    return technique_pb2.Technique(cluster=technique_pb2.Cluster(**params))


def train_quantized(**params: object) -> technique_pb2.Technique:
    return technique_pb2.Technique(train_quantized=technique_pb2.TrainQuantized(**params))


def quantize(mode: str = "MODE_DYNAMIC", **params: object) -> technique_pb2.Technique:
    return technique_pb2.Technique(quantize=technique_pb2.Quantize(mode=mode, **params))


def export(form: str = "FORMAT_SAVED_MODEL") -> technique_pb2.Technique:
    return technique_pb2.Technique(export=technique_pb2.Export(format=form))


def description(
    kind: int = artifact_pb2.ARTIFACT_KIND_KERAS, unsupported: Mapping[str, str] | None = None
) -> model_pb2.ModelDescription:
    """Gives what the converter would say of a model."""
    return model_pb2.ModelDescription(
        artifact=artifact_pb2.Artifact(digest=MODEL, kind=kind),
        format="Keras" if kind == artifact_pb2.ARTIFACT_KIND_KERAS else "SavedModel",
        techniques=[
            model_pb2.TechniqueSupport(technique=name, supported=False, reason=reason)
            for name, reason in (unsupported or {}).items()
        ],
    )


def plan_of(spec: jobs_pb2.JobSpec, facts: DataFacts = ALL_DATA, **options: object) -> Plan:
    """Plans a spec."""
    return make_plan(spec, resolve(spec), description(**options), facts)


def record_of(*recipes: str, facts: DataFacts = ALL_DATA, **fields: object) -> JobRecord:
    """Gives a job as it would be accepted."""
    spec = spec_of(*recipes, **fields)
    resolved = resolve(spec)
    plan = make_plan(spec, resolved, description(), facts)
    del spec.recipes[:]
    spec.recipes.extend(resolved)
    return JobRecord("default", "job-1", 1000.0, spec, plan, ("arrays not used: extra",))


def succeeded(name: str, *, started: float = 1001.0, ended: float = 1002.0, **fields: object) -> Outcome:
    """Gives the outcome of a step that made an artifact."""
    result = step_pb2.StepResult(
        artifact=artifact_pb2.Artifact(digest=sha256_text(name)), contract=sha256_text("contract"), **fields
    )
    return Outcome(result=result, worker="w:1", action=sha256_text("a"), attempts=1, started=started, ended=ended)


def failed(reason: str = "INVARIANT_BROKEN", message: str = "no", *, ended: float = 1002.0) -> Outcome:
    """Gives the outcome of a step that a worker refused."""
    error = errors_pb2.Error(reason=reason, message=message)
    return Outcome(error=error, attempts=1, started=1001.0, ended=ended)


def nodes_of(plan: Plan, technique: str) -> list[str]:
    """Gives the ids of the nodes of a technique."""
    return [node.id for node in plan.nodes if node.technique == technique]


def candidate_names(plan: Plan) -> Sequence[str]:
    """Gives the recipes of a plan's candidates."""
    return [candidate.recipe for candidate in plan.candidates]
