import grpc
import pytest
from google.rpc import error_details_pb2

from squeezeflow.core.errors import REASONS, SqueezeflowError
from squeezeflow.rpc.errors import STATUS_DETAILS, from_rpc_error, status_code, to_status


class Failed(grpc.RpcError):
    """What a client sees of a failed call."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, bytes], ...] = ()) -> None:
        self._seen = code, details, trailers

    def code(self) -> grpc.StatusCode:
        return self._seen[0]

    def details(self) -> str:
        return self._seen[1]

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._seen[2]


def through_the_wire(error: SqueezeflowError) -> SqueezeflowError:
    status = to_status(error)
    failed = Failed(status_code(error), status.message, ((STATUS_DETAILS, status.SerializeToString()),))
    return from_rpc_error(failed, "the worker")


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_has_a_status_and_comes_back_from_it(reason: str) -> None:
    back = through_the_wire(SqueezeflowError(reason, "what to change", metadata={"array": "x_train"}))
    assert (back.reason, back.message, back.metadata["array"]) == (reason, "what to change", "x_train")


def test_field_violations_come_back() -> None:
    error = SqueezeflowError("INVALID_PARAMETER", "bad", fields=[("spec.model", "is required")])
    assert through_the_wire(error).fields == (("spec.model", "is required"),)


@pytest.mark.parametrize(
    ("reason", "retried"), [("OVERLOADED", True), ("QUOTA_EXCEEDED", True), ("OUT_OF_MEMORY", False)]
)
def test_only_what_passes_by_itself_carries_retry_info(reason: str, retried: bool) -> None:
    status = to_status(SqueezeflowError(reason, "later", metadata={"retry_after_seconds": 7}))
    retry = error_details_pb2.RetryInfo()
    found = [detail for detail in status.details if detail.Unpack(retry)]
    assert bool(found) is retried
    assert not retried or retry.retry_delay.seconds == 7


def test_a_long_log_is_cut_at_its_beginning_and_fits_into_trailers() -> None:
    log = "\n".join(f"line {number}" for number in range(5000)) + "\nthe end"
    error = SqueezeflowError("CHILD_CRASHED", "x" * 9000, metadata={"log": log, "signal": "SIGABRT"})
    assert to_status(error).ByteSize() < 7000
    back = through_the_wire(error)
    assert back.metadata["log"].endswith("the end")
    assert back.metadata["signal"] == "SIGABRT"


@pytest.mark.parametrize(
    ("code", "details", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect", "WORKER_UNAVAILABLE"),
        (grpc.StatusCode.CANCELLED, "", "CANCELLED"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", "TIMED_OUT"),
        (grpc.StatusCode.UNIMPLEMENTED, "", "WORKER_UNAVAILABLE"),
        (grpc.StatusCode.UNKNOWN, "boom", "INTERNAL"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)", "INVALID_PARAMETER"),
    ],
)
def test_a_foreign_status_gets_the_reason_that_it_means(code: grpc.StatusCode, details: str, reason: str) -> None:
    error = from_rpc_error(Failed(code, details), "converter at 127.0.0.1:1")
    assert error.reason == reason
    assert "converter at 127.0.0.1:1" in error.message
