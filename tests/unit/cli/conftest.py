"""A job with one candidate of every kind, for tests of what is shown of it."""

from __future__ import annotations

import pytest

from squeezeflow.core import recipes
from squeezeflow.v1 import jobs_pb2, step_pb2

MODEL, DATA = "a" * 64, "b" * 64


def _metric(value: float, low: float | None = None, high: float | None = None, samples: int = 10000) -> step_pb2.Metric:
    return step_pb2.Metric(value=value, low=low, high=high, samples=samples)


@pytest.fixture
def sample_job() -> jobs_pb2.Job:
    """Gives an ended job: a baseline, one success, one failure."""
    job = jobs_pb2.Job(id="job-1", state=jobs_pb2.JOB_STATE_SUCCEEDED, notes=["arrays not used: len_train"])
    job.spec.model.artifact, job.spec.data.artifact = MODEL, DATA
    job.spec.data.scale.append(1 / 255)
    job.spec.recipes.extend([recipes.named("int8"), recipes.named("prune")])
    job.create_time.FromJsonString("2026-01-02T03:04:05Z")
    job.start_time.FromJsonString("2026-01-02T03:04:06Z")
    job.end_time.FromJsonString("2026-01-02T03:04:17.500Z")
    job.candidates.add(
        recipe="float32",
        state=jobs_pb2.JOB_STATE_SUCCEEDED,
        artifact="c" * 64,
        contract="d" * 64,
        sizes=step_pb2.Sizes(raw_bytes=411_648, deflated_bytes=381_200),
        metrics={
            "accuracy": _metric(0.8911, 0.8848, 0.8971),
            "latency_p50_ms": _metric(0.142),
            "latency_ratio": _metric(1),
        },
        invariants=[step_pb2.Invariant(name="finite", passed=True), step_pb2.Invariant(name="alive", passed=True)],
        steps=[
            jobs_pb2.CandidateStep(
                technique="convert",
                action="e" * 64,
                state=jobs_pb2.JOB_STATE_SUCCEEDED,
                fraction=1,
                stage="storing",
                worker="127.0.0.1:7071",
                seconds=1.25,
                attempts=1,
                artifact="c" * 64,
                sizes=step_pb2.Sizes(raw_bytes=411_648, deflated_bytes=381_200),
            )
        ],
    )
    job.candidates.add(
        recipe="int8",
        state=jobs_pb2.JOB_STATE_SUCCEEDED,
        requested=True,
        artifact="f" * 64,
        contract="1" * 64,
        sizes=step_pb2.Sizes(raw_bytes=108_992, deflated_bytes=84_301),
        metrics={
            "accuracy": _metric(0.8893, 0.883, 0.8953),
            "accuracy_drop": _metric(0.0018, -0.0004, 0.004),
            "label_flips": _metric(0.0123),
            "latency_p50_ms": _metric(0.1154),
            "latency_ratio": _metric(0.81),
            "parameters": _metric(102_666, samples=0),
            "macs": _metric(1_204_224, samples=0),
            "arena_peak_bytes": _metric(25_344, samples=0),
        },
        invariants=[step_pb2.Invariant(name="integer", passed=True, detail="all 8 ops")],
        notes=["SOFTMAX is left float", "calibrated with 200 samples of train"],
        steps=[
            jobs_pb2.CandidateStep(technique="quantize", state=jobs_pb2.JOB_STATE_SUCCEEDED, fraction=1, cached=True)
        ],
    )
    failed = job.candidates.add(recipe="prune", state=jobs_pb2.JOB_STATE_FAILED, requested=True)
    failed.error.reason = "UNSUPPORTED_LAYER"
    failed.error.message = "no layer of the model can be pruned:\nuse another recipe [see inspect]"
    failed.error.metadata["layers"] = "2"
    return job
