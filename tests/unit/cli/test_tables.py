from __future__ import annotations

import io

import pytest
from rich.console import Console

from squeezeflow.cli import tables
from squeezeflow.cli.inspect import heading
from squeezeflow.cli.output import Output, message_json
from squeezeflow.v1 import artifact_pb2, jobs_pb2, model_pb2, step_pb2


def printed(*parts: object) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=160, color_system=None, markup=False, emoji=False, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def test_a_job_is_shown_as_its_golden_table(sample_job, check_golden):
    check_golden("job.txt", printed(tables.job_table(sample_job), *tables.job_lines(sample_job)))


def test_a_job_is_printed_as_its_golden_document(sample_job, check_golden):
    check_golden("job.json", message_json(sample_job) + "\n")


def test_a_regression_job_shows_errors_instead_of_accuracy(check_golden):
    job = jobs_pb2.Job(id="job-2", state=jobs_pb2.JOB_STATE_RUNNING)
    job.candidates.add(
        recipe="float32",
        state=jobs_pb2.JOB_STATE_SUCCEEDED,
        metrics={"mae": step_pb2.Metric(value=0.25, low=0.24, high=0.26)},
    )
    job.candidates.add(
        recipe="dynamic",
        state=jobs_pb2.JOB_STATE_RUNNING,
        metrics={
            "mae": step_pb2.Metric(value=0.26, low=0.25, high=0.27),
            "mae_increase": step_pb2.Metric(value=0.01),
        },
    )
    check_golden("regression.txt", printed(tables.job_table(job), *tables.job_lines(job)))


def test_jobs_and_artifacts_are_shown_as_their_golden_tables(sample_job, check_golden):
    artifact = artifact_pb2.Artifact(digest="a" * 64, kind=artifact_pb2.ARTIFACT_KIND_SAVED_MODEL, size_bytes=1_234_567)
    artifact.create_time.FromJsonString("2026-01-02T03:04:05Z")
    running = jobs_pb2.Job(id="job-3", state=jobs_pb2.JOB_STATE_RUNNING)
    check_golden("lists.txt", printed(tables.jobs_table([sample_job, running]), tables.artifacts_table([artifact])))


def description() -> model_pb2.ModelDescription:
    shown = model_pb2.ModelDescription(
        artifact=artifact_pb2.Artifact(digest="a" * 64, kind=artifact_pb2.ARTIFACT_KIND_KERAS),
        format="tf_keras .keras",
        written_by="2.21.0",
        signatures=["serving_default"],
        parameters=1_234,
        findings=["layer lambda_1 holds code"],
        sizes=step_pb2.Sizes(raw_bytes=5000, deflated_bytes=999),
    )
    shown.contract.inputs.add(name="x", dtype="float32", shape=[-1, 28, 28, 1])
    quantized = shown.contract.outputs.add(name="y", dtype="int8", shape=[-1, 10], meaning="probabilities")
    quantized.quantization.scale, quantized.quantization.zero_point = 1 / 256, -128
    no = model_pb2.TechniqueSupport(technique="prune", supported=False, reason="no kernel")
    yes = model_pb2.TechniqueSupport(technique="convert", supported=True)
    shown.techniques.extend([yes, no])
    shown.layers.add(name="dense", class_name="Dense", parameters=1_234, output_shape=[-1, 10], techniques=[no, yes])
    shown.layers.add(name="twins", class_name="Functional")
    shown.tensors.add(
        index=1,
        name="dense/kernel",
        dtype="int8",
        shape=[10, 20],
        scales=[0.5, 0.25],
        zero_points=[0, 0],
        quantized_dimension=0,
        constant=True,
        raw_bytes=200,
        sparsity=0.805,
        unique_values=33,
    )
    shown.tensors.add(index=2, name="x", dtype="float32", shape=[1, 20], quantized_dimension=-1)
    shown.operators.add(index=0, name="FULLY_CONNECTED", inputs=[2, 1, -1], outputs=[3], arithmetic="hybrid")
    return shown


def test_a_description_is_shown_as_its_golden_tables(check_golden):
    shown = description()
    check_golden(
        "description.txt",
        printed(
            *heading(shown),
            tables.techniques_table(shown),
            tables.layers_table(shown),
            tables.tensors_table(shown),
            tables.operators_table(shown),
        ),
    )


def test_a_description_is_printed_as_its_golden_document(check_golden):
    check_golden("description.json", message_json(description()) + "\n")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (108_992, "109.0 kB"), (3_200_000_000, "3.2 GB")]
)
def test_sizes_are_shown_in_decimal_units(count, text):
    assert tables.size(count) == text


def test_what_looks_like_markup_is_shown_as_it_is(capsys):
    Output(as_json=False).show("[bold]shape [None, 28][/bold] :smile:")
    assert capsys.readouterr().out == "[bold]shape [None, 28][/bold] :smile:\n"
