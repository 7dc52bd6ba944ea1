from __future__ import annotations

import pytest

from squeezeflow.cli import exits
from squeezeflow.core.errors import REASONS
from squeezeflow.v1 import jobs_pb2

CODES = {
    5: {"STORE_UNAVAILABLE", "WORKER_UNAVAILABLE", "OVERLOADED", "QUOTA_EXCEEDED", "DIGEST_MISMATCH", "INTERNAL"},
    130: {"CANCELLED"},
}
CODES[3] = REASONS - CODES[5] - CODES[130]


@pytest.mark.parametrize(("code", "reasons"), sorted(CODES.items()))
def test_every_reason_has_the_exit_code_of_the_table(code, reasons):
    assert {exits.code_of(reason) for reason in reasons} == {code}


def job(state: int, *candidates: tuple[str, str, bool]) -> jobs_pb2.Job:
    made = jobs_pb2.Job(id="1", state=state)
    for recipe, reason, requested in candidates:
        candidate = made.candidates.add(recipe=recipe, requested=requested)
        candidate.error.reason = reason
    return made


def test_a_job_that_succeeded_has_no_failure_though_a_candidate_failed():
    assert exits.failure_of(job(jobs_pb2.JOB_STATE_SUCCEEDED, ("int8", "DATA_MISSING", True))) is None


def test_a_failed_job_has_the_reason_of_its_first_failed_requested_candidate():
    failed = job(
        jobs_pb2.JOB_STATE_FAILED,
        ("float32", "INTERNAL", False),
        ("int8", "DATA_MISSING", True),
        ("prune", "STORE_UNAVAILABLE", True),
    )
    assert exits.failure_of(failed).reason == "DATA_MISSING"


def test_a_job_whose_baseline_failed_has_the_job_s_own_error():
    failed = job(jobs_pb2.JOB_STATE_FAILED)
    failed.error.reason = "UNSUPPORTED_OP"
    assert exits.failure_of(failed).reason == "UNSUPPORTED_OP"


def test_a_cancelled_job_counts_as_interrupted():
    assert exits.failure_of(job(jobs_pb2.JOB_STATE_CANCELLED)).reason == "CANCELLED"
