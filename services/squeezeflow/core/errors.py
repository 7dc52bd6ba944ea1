"""The one exception that crosses rooms: a reason of `errors.proto`, a message that says what to change, and details.

rpc/ turns it into a status and back; the sandbox carries it from a child to its parent; jobs keep it as `Error`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from squeezeflow.v1 import errors_pb2

REASONS = frozenset(name.removeprefix("REASON_") for name in errors_pb2.Reason.DESCRIPTOR.values_by_name) - {
    "UNSPECIFIED"
}


class SqueezeflowError(Exception):
    """A failure with a reason.

    Args:
        reason: bare word of `Reason`, for example `DATA_MISMATCH`.
        message: one line: what is wrong and what to change.
        metadata: details by name; values become strings.
        fields: (field path, description) pairs of a request that is refused.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, object] | None = None,
        fields: Sequence[tuple[str, str]] = (),
    ) -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason} is not a Reason")
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.fields = tuple(fields)

    def to_proto(self) -> errors_pb2.Error:
        """Gives the form that jobs, candidates and steps keep."""
        return errors_pb2.Error(reason=self.reason, message=self.message, metadata=self.metadata)

    @classmethod
    def from_proto(cls, error: errors_pb2.Error) -> SqueezeflowError:
        """Gives the exception back from its kept form."""
        reason = error.reason if error.reason in REASONS else "INTERNAL"
        return cls(reason, error.message, metadata=dict(error.metadata))
