"""Exceptions become statuses, and statuses exceptions again, here and nowhere else.

A status carries `google.rpc.Status` with ErrorInfo (reason, domain, metadata) and, where they apply, BadRequest field
violations and RetryInfo (AIP-193).
"""

from __future__ import annotations

import math
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from squeezeflow.core.errors import REASONS, SqueezeflowError

DOMAIN = "squeezeflow"
STATUS_DETAILS = "grpc-status-details-bin"
RETRY_AFTER = "retry_after_seconds"

# Trailers above 8 KiB are refused by peers with default settings: what goes into one is kept well below.
_MAX_MESSAGE = 1500
_MAX_VALUE = 2800
_MAX_VALUES = 3500

_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_CODES: dict[str, grpc.StatusCode] = {
    "MALFORMED_MODEL": _INVALID,
    "CODE_IN_MODEL": _INVALID,
    "UNSUPPORTED_OP": _INVALID,
    "UNSUPPORTED_LAYER": _INVALID,
    "UNSUPPORTED_INPUT": _INVALID,
    "DATA_MISMATCH": _INVALID,
    "DATA_MISSING": _INVALID,
    "INVALID_PARAMETER": _INVALID,
    "NON_FINITE_OUTPUT": grpc.StatusCode.FAILED_PRECONDITION,
    "OUTPUT_MISMATCH": grpc.StatusCode.FAILED_PRECONDITION,
    "INVARIANT_BROKEN": grpc.StatusCode.FAILED_PRECONDITION,
    "NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "CHILD_CRASHED": grpc.StatusCode.INTERNAL,
    "OUT_OF_MEMORY": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "TIMED_OUT": grpc.StatusCode.DEADLINE_EXCEEDED,
    "STORE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "WORKER_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "OVERLOADED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "QUOTA_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "DIGEST_MISMATCH": grpc.StatusCode.DATA_LOSS,
    "INTERNAL": grpc.StatusCode.INTERNAL,
    "CANCELLED": grpc.StatusCode.CANCELLED,
}
_RETRYABLE = frozenset({"OVERLOADED", "QUOTA_EXCEEDED"})


def status_code(error: SqueezeflowError) -> grpc.StatusCode:
    """Gives the gRPC code of an error's reason."""
    return _CODES[error.reason]


def to_status(error: SqueezeflowError) -> status_pb2.Status:
    """Gives the rich status of an error, bounded so that it fits into trailers everywhere."""
    message = _clip(error.message, _MAX_MESSAGE)
    details: list[any_pb2.Any] = []

    def add(detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        details.append(packed)

    add(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_bounded(error.metadata)))
    if error.fields:
        add(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=_clip(field, 200), description=_clip(text, 300))
                    for field, text in error.fields[:8]
                ]
            )
        )
    if error.reason in _RETRYABLE:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(retry_after(error) * 1000))
        add(retry)
    return status_pb2.Status(code=status_code(error).value[0], message=message, details=details)


def retry_after(error: SqueezeflowError) -> float:
    """Gives how many seconds to wait before the same call is tried again."""
    try:
        seconds = float(error.metadata.get(RETRY_AFTER, "5"))
    except ValueError:
        seconds = 5.0
    return min(max(seconds, 0.1), 3600.0) if math.isfinite(seconds) else 5.0


def from_rpc_error(error: grpc.RpcError, what: str) -> SqueezeflowError:
    """Gives the exception that a failed call stands for.

    Args:
        error: what grpc or grpc.aio raised.
        what: who was called, for the message: `converter at 127.0.0.1:7071`.
    """
    code, text = error.code(), error.details() or ""
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == STATUS_DETAILS:
            known = _from_status(bytes(value))
            if known is not None:
                return known
    if code is grpc.StatusCode.CANCELLED:
        return SqueezeflowError("CANCELLED", f"the call to {what} was cancelled")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return SqueezeflowError("TIMED_OUT", f"{what} did not answer in time")
    if code is grpc.StatusCode.UNAVAILABLE:
        return SqueezeflowError("WORKER_UNAVAILABLE", f"{what} is not there ({text}): start it, or correct its address")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return SqueezeflowError("WORKER_UNAVAILABLE", f"{what} does not serve this call: is it another service?")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than" in text.lower():
        return SqueezeflowError("INVALID_PARAMETER", f"a message to or from {what} is too large: {text}")
    return SqueezeflowError("INTERNAL", f"{what} failed: {code.name}: {text}")


def _from_status(data: bytes) -> SqueezeflowError | None:
    """Reads a rich status of ours; None where it is somebody else's."""
    status = status_pb2.Status.FromString(data)
    reason, metadata, fields = "", {}, []
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in REASONS:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            fields = [(violation.field, violation.description) for violation in bad.field_violations]
    return SqueezeflowError(reason, status.message, metadata=metadata, fields=fields) if reason else None


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _bounded(metadata: dict[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    room = _MAX_VALUES
    for key, value in metadata.items():
        # The end of a log or traceback is what tells.
        value = value if len(value) <= _MAX_VALUE else "…" + value[-_MAX_VALUE:]
        room -= len(key) + len(value)
        if room >= 0:
            kept[key] = value
    return kept
