from __future__ import annotations

import io

from rich.console import Console

from squeezeflow.cli.progress import job_view
from squeezeflow.v1 import jobs_pb2


def states() -> list[jobs_pb2.Job]:
    """A step that waits, trains, is tried again and ends."""
    wanted = []
    for state, stage, metrics, attempts in (
        (jobs_pb2.JOB_STATE_QUEUED, "", {}, 0),
        (jobs_pb2.JOB_STATE_RUNNING, "training", {"loss": 0.52}, 1),
        (jobs_pb2.JOB_STATE_RUNNING, "training", {"loss": 0.31}, 2),
        (jobs_pb2.JOB_STATE_SUCCEEDED, "storing", {}, 2),
    ):
        job = jobs_pb2.Job(id="1", state=jobs_pb2.JOB_STATE_RUNNING)
        candidate = job.candidates.add(recipe="prune")
        candidate.steps.add(
            technique="prune", state=state, stage=stage, metrics=metrics, attempts=attempts, fraction=0.4, seconds=2
        )
        wanted.append(job)
    return wanted


def test_without_a_terminal_every_change_of_a_step_is_one_line(sample_job):
    stream = io.StringIO()
    with job_view(Console(file=stream, width=160)) as view:
        for job in [*states(), sample_job]:
            view.update(job)
    assert stream.getvalue().splitlines() == [
        "prune: prune running (training, loss 0.52)",
        "prune: prune succeeded (2.0 s, attempt 2)",
        "float32: convert succeeded (1.2 s, 411.6 kB)",
        "int8: quantize succeeded (cached)",
    ]


def test_on_a_terminal_every_step_that_began_has_a_bar(sample_job):
    stream = io.StringIO()
    with job_view(Console(file=stream, width=160, force_terminal=True, color_system=None)) as view:
        for job in [*states(), sample_job]:
            view.update(job)
    last = stream.getvalue()
    for text in ("prune", "100%", "attempt 2", "convert", "411.6 kB", "quantize", "cached"):
        assert text in last
