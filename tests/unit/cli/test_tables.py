from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from tests.layer_models import FER

from squeezeflow.cli import tables
from squeezeflow.cli.inspect import heading
from squeezeflow.cli.model_tables import model_tables
from squeezeflow.cli.output import Output, message_json
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.v1 import artifact_pb2, jobs_pb2, model_pb2, step_pb2


def printed(*parts: object, width: int = 160) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, markup=False, emoji=False, highlight=False)
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
        deflated_bytes=120,
        sparsity=0.805,
        unique_values=33,
        unique_values_per_channel=8,
        layer="dense",
    )
    shown.tensors.add(
        index=4,
        name="wide/kernel;wide/MatMul",
        dtype="int4",
        shape=[2, 64],
        scales=[0.5, 0.25, 0.5, 0.5],
        zero_points=[0, 0, 0, 0],
        quantized_dimension=-1,
        block_size=32,
        constant=True,
    )
    shown.tensors.add(index=2, name="x", dtype="float32", shape=[1, 20], quantized_dimension=-1)
    shown.operators.add(index=0, name="FULLY_CONNECTED", inputs=[2, 1, -1], outputs=[3], arithmetic="hybrid")
    shown.operators[0].layer, shown.operators[0].macs = "dense, relu", 200
    shown.operators[0].reason = "weights are int8, activations are float"
    shown.operators.add(index=1, name="SOFTMAX", inputs=[3], outputs=[4], arithmetic="float", reason="left float")
    shown.operators.add(index=2, name="RESHAPE", inputs=[4], outputs=[5], arithmetic="float", reason="left float")
    shown.macs, shown.arena_peak_bytes = 200, 16320
    shown.notes.append("macs count the bodies of loops once")
    return shown


def test_a_description_is_shown_as_its_golden_tables(check_golden):
    shown = description()
    check_golden(
        "description.txt",
        printed(
            *heading(shown),
            *model_tables(shown),
            width=100,
        ),
    )


def test_a_real_file_is_shown_within_100_columns():
    file = TfliteFile.read(FER)
    shown = model_pb2.ModelDescription(tensors=file.tensors, operators=file.operators)
    lines = printed(*model_tables(shown), width=100).splitlines()
    assert max(len(line) for line in lines) <= 100
    # Headers are whole, and numbers are not folded.
    assert any(
        re.search("constant.*dtype.*shape.*raw.*deflated.*sparsity.*distinct.*a channel", line) for line in lines
    )
    assert any("10,163" not in line and "2,073,600" in line for line in lines)
    assert any("weights under 1,024 elements" in line for line in lines)


def test_what_files_cost_is_shown_for_those_that_are_there(sample_job, check_golden):
    check_golden("costs.txt", printed(tables.costs_table(sample_job)))


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
