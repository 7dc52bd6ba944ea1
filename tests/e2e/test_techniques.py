"""Every shipped recipe through the whole stack, in one job on one model; what each promises is read from its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests import models

from squeezeflow.client import Client
from squeezeflow.core import recipes
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.core.tflite.weights import Weight
from squeezeflow.v1 import artifact_pb2, jobs_pb2, technique_pb2

INTEGER = ("int8", "int8-io", "uint8-io", "int16x8", "prune-int8", "cluster-int8", "prune-cluster-int8")
TRAINED_INTEGER = ("qat", "pqat", "cqat", "pcqat")
PRUNED = ("prune", "prune-int8", "prune-cluster", "prune-cluster-int8", "pqat", "pcqat")
CLUSTERED = ("cluster", "cluster-int8", "prune-cluster", "prune-cluster-int8", "cqat", "pcqat")
CLUSTERS = 8
# The large kernel of the model, which every technique takes.
DENSE = 512


@pytest.fixture(scope="module")
def job(client: Client, cnn: Path, few_images: Path) -> jobs_pb2.Job:
    """All shipped recipes in one job, one epoch each."""
    names = [name for name in recipes.RECIPES if name != recipes.BASELINE]
    chosen = recipes.override(
        [recipes.named(name) for name in names], [f"cluster.number_of_clusters={CLUSTERS}", "prune.sparsity=0.6"]
    )
    return client.compress(
        cnn,
        data=few_images,
        scale=[1 / 255],
        recipes=chosen,
        exports=[technique_pb2.Export(format=technique_pb2.Export.FORMAT_KERAS)],
        fine_tune=technique_pb2.FineTune(epochs=1),
    )


@pytest.fixture(scope="module")
def files(client: Client, job: jobs_pb2.Job, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, TfliteFile]:
    """The final file of every candidate."""
    folder = tmp_path_factory.mktemp("techniques")
    found = {}
    for candidate in job.candidates:
        if candidate.state == jobs_pb2.JOB_STATE_SUCCEEDED:
            path = client.download(candidate.artifact, folder / f"{candidate.recipe}.tflite")
            found[candidate.recipe] = TfliteFile.read(path)
    return found


def test_every_recipe_succeeds_and_every_invariant_holds(job: jobs_pb2.Job) -> None:
    errors = {c.recipe: f"{c.error.reason}: {c.error.message}" for c in job.candidates if c.error.reason}
    assert not errors
    assert [c.recipe for c in job.candidates] == list(recipes.RECIPES)
    for candidate in job.candidates:
        assert {invariant.name for invariant in candidate.invariants} >= {"finite", "alive", "close"}
        assert all(invariant.passed for invariant in candidate.invariants)
        assert candidate.metrics["accuracy"].samples == 400
        assert candidate.metrics["latency_p50_ms"].value > 0


def test_steps_that_recipes_share_run_once(job: jobs_pb2.Job) -> None:
    prunes = {step.action for candidate in job.candidates for step in candidate.steps if step.technique == "prune"}
    assert len(prunes) == 1


def test_sizes_fall_as_the_techniques_promise(job: jobs_pb2.Job) -> None:
    raw = {candidate.recipe: candidate.sizes.raw_bytes for candidate in job.candidates}
    deflated = {candidate.recipe: candidate.sizes.deflated_bytes for candidate in job.candidates}
    assert raw["float16"] < 0.65 * raw["float32"]
    assert raw["int4"] < raw["dynamic"] < 0.6 * raw["float32"]
    assert all(raw[recipe] < 0.6 * raw["float32"] for recipe in (*INTEGER, *TRAINED_INTEGER))
    assert all(deflated[recipe] < 0.75 * deflated["float32"] for recipe in ("prune", "cluster", "prune-cluster"))
    assert deflated["pcqat"] < deflated["qat"]


@pytest.mark.parametrize("recipe", [*INTEGER, *TRAINED_INTEGER])
def test_integer_recipes_give_integer_files(files: Mapping[str, TfliteFile], recipe: str) -> None:
    file = files[recipe]
    assert {weight.tensor.dtype for weight in file.weights} == {"int8"}
    ends = {file.main.tensors[index].dtype for index in (*file.inputs, *file.outputs)}
    assert ends == {{"int8-io": "int8", "uint8-io": "uint8"}.get(recipe, "float32")}


def dense_weight(file: TfliteFile) -> Weight:
    return max(file.weights, key=lambda weight: weight.tensor.size)


@pytest.mark.parametrize("recipe", PRUNED)
def test_zeros_are_found_in_the_final_file(files: Mapping[str, TfliteFile], job: jobs_pb2.Job, recipe: str) -> None:
    weight = dense_weight(files[recipe])
    assert weight.tensor.size >= DENSE
    assert weight.zeros >= 0.59 * weight.tensor.size
    candidate = next(c for c in job.candidates if c.recipe == recipe)
    assert "sparsity" in {invariant.name for invariant in candidate.invariants}


@pytest.mark.parametrize("recipe", CLUSTERED)
def test_few_values_are_found_in_the_final_file(
    files: Mapping[str, TfliteFile], job: jobs_pb2.Job, recipe: str
) -> None:
    weight = dense_weight(files[recipe])
    assert weight.values is not None
    assert weight.channel_axis is not None
    channels = np.moveaxis(weight.values, weight.channel_axis, 0)
    assert max(len(np.unique(channel)) for channel in channels) <= CLUSTERS
    candidate = next(c for c in job.candidates if c.recipe == recipe)
    assert "clusters" in {invariant.name for invariant in candidate.invariants}


def test_the_model_before_the_last_step_is_exported(client: Client, job: jobs_pb2.Job, tmp_path: Path) -> None:
    exports = {candidate.recipe: candidate.exports["keras"] for candidate in job.candidates}
    assert exports["pqat"] == exports["prune"] == exports["prune-int8"]
    assert exports["pcqat"] == exports["prune-cluster"]
    description = client.describe(client.download(exports["prune-cluster"], tmp_path / "model.keras"))
    assert {layer.name for layer in description.layers} >= {"conv", "dense", "probabilities"}


def test_layers_that_a_technique_leaves_alone_are_named_with_the_reason(job: jobs_pb2.Job) -> None:
    (candidate,) = (c for c in job.candidates if c.recipe == "pcqat")
    for step in candidate.steps:
        if step.technique in ("prune", "cluster", "train_quantized"):
            assert any(layer.applied for layer in step.layers), step.technique
            assert all(layer.detail for layer in step.layers if not layer.applied), step.technique
    cluster = next(step for step in candidate.steps if step.technique == "cluster")
    assert "depthwise" in {layer.layer for layer in cluster.layers if not layer.applied}


@pytest.mark.parametrize(
    "technique",
    [
        technique_pb2.Technique(prune=technique_pb2.Prune(sparsity=0.5, one_shot=True)),
        technique_pb2.Technique(cluster=technique_pb2.Cluster(number_of_clusters=4, one_shot=True)),
    ],
    ids=["prune", "cluster"],
)
def test_a_saved_model_is_pruned_and_clustered_at_once_without_data(
    client: Client, tmp_path: Path, technique: technique_pb2.Technique
) -> None:
    model = models.saved_model(tmp_path)
    convert = technique_pb2.Technique(convert=technique_pb2.Convert())
    recipe = jobs_pb2.Recipe(name="at-once", techniques=[technique, convert])
    job = client.compress(model, recipes=[recipe])
    candidate = next(c for c in job.candidates if c.recipe == "at-once")
    assert candidate.state == jobs_pb2.JOB_STATE_SUCCEEDED, candidate.error
    stored = client.get_artifact(candidate.steps[0].artifact)
    assert stored.kind == artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
    values = dense_weight(TfliteFile.read(client.download(candidate.artifact, tmp_path / "out.tflite"))).values
    assert values is not None
    if technique.HasField("prune"):
        assert np.count_nonzero(values == 0) >= values.size // 2
    else:
        assert len(np.unique(values)) <= 4


def test_training_logs_are_kept_where_they_are_asked_for(
    client: Client, cnn: Path, few_images: Path, tmp_path: Path
) -> None:
    prune = technique_pb2.Technique(prune=technique_pb2.Prune(summaries=True))
    convert = technique_pb2.Technique(convert=technique_pb2.Convert())
    job = client.compress(
        cnn,
        data=few_images,
        scale=[1 / 255],
        recipes=[jobs_pb2.Recipe(name="logged", techniques=[prune, convert])],
        fine_tune=technique_pb2.FineTune(epochs=1),
    )
    (step,) = (s for c in job.candidates if c.recipe == "logged" for s in c.steps if s.technique == "prune")
    assert step.logs
    folder = client.download(step.logs, tmp_path / "logs")
    assert [path for path in folder.rglob("*") if "tfevents" in path.name]


def test_a_float_tflite_file_is_quantized_by_the_second_back_end(client: Client, cnn: Path) -> None:
    convert = technique_pb2.Technique(convert=technique_pb2.Convert())
    quantize = technique_pb2.Technique(quantize=technique_pb2.Quantize(mode=technique_pb2.Quantize.MODE_INT4))
    job = client.compress(cnn, recipes=[jobs_pb2.Recipe(name="from-tflite", techniques=[convert, quantize]), "int4"])
    found = {candidate.recipe: candidate for candidate in job.candidates}
    assert found["from-tflite"].state == jobs_pb2.JOB_STATE_SUCCEEDED, found["from-tflite"].error
    assert found["from-tflite"].artifact == found["int4"].artifact
