"""Exit codes: what a script can tell from a call of the command line."""

from __future__ import annotations

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import jobs_pb2

DONE = 0
USAGE = 2
REFUSED = 3
BROKEN = 5
INTERRUPTED = 130

_BROKEN = frozenset(
    {"STORE_UNAVAILABLE", "WORKER_UNAVAILABLE", "OVERLOADED", "QUOTA_EXCEEDED", "DIGEST_MISMATCH", "INTERNAL"}
)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: ends a command as Ctrl-C does, and is the orderly end of one that stays."""


class UsageError(Exception):
    """What the command line refuses before any call.

    Args:
        reason: INVALID_PARAMETER, or NOT_FOUND for a file that is not there.
        message: what is wrong and what to change, in one line.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.error = SqueezeflowError(reason, message)


def code_of(reason: str) -> int:
    """Gives the exit code of a reason."""
    if reason == "CANCELLED":
        return INTERRUPTED
    return BROKEN if reason in _BROKEN else REFUSED


def failure_of(job: jobs_pb2.Job) -> SqueezeflowError | None:
    """Gives why an ended job counts as failed; None where at least one requested candidate succeeded."""
    if job.state == jobs_pb2.JOB_STATE_SUCCEEDED:
        return None
    if job.state == jobs_pb2.JOB_STATE_CANCELLED:
        return SqueezeflowError("CANCELLED", f"job {job.id} was cancelled")
    failed = [c.error for c in job.candidates if c.requested and c.error.reason and c.error.reason != "CANCELLED"]
    if failed:
        return SqueezeflowError.from_proto(failed[0])
    if job.error.reason:
        return SqueezeflowError.from_proto(job.error)
    return SqueezeflowError("INTERNAL", f"job {job.id} ended without a result and without an error")
