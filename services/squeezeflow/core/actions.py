"""Action records: what was done to what, with which versions. They are the cache and the lineage, and nothing else is.

An action's digest is the SHA-256 of the canonical JSON of technique, parameters (defaults filled in), inputs, settings
and toolchain. The first record of an action stands; it is written last, when everything that it names is stored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from squeezeflow.core.artifacts import Artifacts, check_digest
from squeezeflow.core.canonical import canonical_json, message_json, sha256_text
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import Store
from squeezeflow.core.tenants import tenant_prefix
from squeezeflow.v1.artifact_pb2 import ActionRecord, NamedArtifact
from squeezeflow.v1.step_pb2 import StepResult

log = logging.getLogger(__name__)

_MOST_RECORDS = 1000


@dataclass(frozen=True)
class Action:
    """One technique with everything that its result depends on.

    Attributes:
        technique: `convert`, `prune`, …
        params: the technique's message.
        inputs: artifact digests by role.
        settings: JSON values that are neither parameter nor artifact: signature, scale, offset.
        toolchain: library versions by name.
    """

    technique: str
    params: Message
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    toolchain: Mapping[str, str]

    @cached_property
    def params_json(self) -> str:
        """The parameters with defaults filled in, as canonical JSON."""
        return canonical_json(message_json(self.params))

    @cached_property
    def digest(self) -> str:
        """The cache key, 64 lowercase hex digits."""
        return sha256_text(
            canonical_json(
                {
                    "technique": self.technique,
                    "params": message_json(self.params),
                    "inputs": dict(self.inputs),
                    "settings": dict(self.settings),
                    "toolchain": dict(self.toolchain),
                }
            )
        )


@dataclass(frozen=True)
class _Entry:
    record: ActionRecord
    result: StepResult

    def encode(self) -> bytes:
        parts = {"record": _to_json(self.record), "result": _to_json(self.result)}
        return canonical_json(parts).encode()

    @classmethod
    def decode(cls, action: str, data: bytes) -> _Entry:
        """Reads an entry; ValueError when it cannot be that of the action."""
        try:
            parts = json.loads(data)
            record = json_format.ParseDict(parts["record"], ActionRecord())
            result = json_format.ParseDict(parts["result"], StepResult())
        except (KeyError, TypeError, json_format.ParseError) as error:
            raise ValueError("no action record") from error
        if record.action != action or result.action != action:
            raise ValueError("the record of another action")
        return cls(record, result)


class ActionCache:
    """Records and finds the actions of one tenant. Synchronous and thread-safe.

    Every method raises STORE_UNAVAILABLE when the store does not answer, and INVALID_PARAMETER for what is no digest.
    """

    def __init__(self, store: Store, tenant: str) -> None:
        self._store = store
        self._prefix = tenant_prefix(tenant)
        self._artifacts = Artifacts(store, tenant)

    def get(self, action: str) -> StepResult | None:
        """Gives the recorded result, `cached` set; None where there is none, or where what it names is not whole."""
        entry = self._entry(action)
        if entry is None or not all(self._artifacts.usable(digest) for _, digest in _outputs(entry.result)):
            return None
        entry.result.cached = True
        return entry.result

    def record(self, action: str) -> ActionRecord | None:
        """Gives the record of an action, whether or not its outputs are still whole."""
        entry = self._entry(action)
        return None if entry is None else entry.record

    def put(self, action: Action, result: StepResult, start_time: datetime) -> StepResult:
        """Records a result whose artifacts are stored, and gives the one that stands: the first.

        A record that cannot be read, or whose outputs are not whole, is replaced.
        """
        record = ActionRecord(
            action=action.digest,
            technique=action.technique,
            params=action.params_json,
            inputs=[NamedArtifact(name=role, digest=digest) for role, digest in sorted(action.inputs.items())],
            toolchain=dict(action.toolchain),
            outputs=[NamedArtifact(name=role, digest=digest) for role, digest in _outputs(result)],
        )
        record.start_time.FromDatetime(start_time.astimezone(UTC))
        record.end_time.FromDatetime(datetime.now(UTC))
        kept = StepResult()
        kept.CopyFrom(result)
        kept.action = action.digest
        kept.cached = False
        for _, digest in _outputs(result):  # before the record: a crash in between leaves no record without its index
            self._store.put_bytes(f"{self._prefix}producers/{digest}/{action.digest}", b"")
        data = _Entry(record, kept).encode()
        if not self._store.put_bytes(self._key(action.digest), data, if_absent=True):
            standing = self.get(action.digest)
            if standing is not None:
                return standing
            self._store.put_bytes(self._key(action.digest), data)
        return kept

    def producers(self, artifact: str) -> list[ActionRecord]:
        """Gives the records of the actions that produced an artifact, newest first; at most 1000."""
        prefix = f"{self._prefix}producers/{check_digest(artifact)}/"
        records = []
        for key in self._store.list(prefix, limit=_MOST_RECORDS):
            record = self.record(key.removeprefix(prefix))
            if record is not None and any(output.digest == artifact for output in record.outputs):
                records.append(record)
        return sorted(records, key=lambda record: record.end_time.ToNanoseconds(), reverse=True)

    def lineage(self, artifact: str) -> list[ActionRecord]:
        """Gives the records that produced an artifact, those that produced their inputs, and so on: nearest first.

        An artifact that was uploaded, or does not exist, has none. At most 1000.
        """
        seen_artifacts = {artifact}
        found: dict[str, ActionRecord] = {}
        level = [artifact]
        while level and len(found) < _MOST_RECORDS:
            produced = {record.action: record for digest in level for record in self.producers(digest)}
            fresh = [record for action, record in produced.items() if action not in found]
            found.update((record.action, record) for record in fresh)
            inputs = dict.fromkeys(named.digest for record in fresh for named in record.inputs)
            level = [digest for digest in inputs if digest not in seen_artifacts]
            seen_artifacts.update(level)
        return list(found.values())[:_MOST_RECORDS]

    def _entry(self, action: str) -> _Entry | None:
        """Reads an entry; one that cannot be read is as good as none: `put` replaces it."""
        try:
            return _Entry.decode(action, self._store.get_bytes(self._key(action)))
        except SqueezeflowError as error:
            if error.reason != "NOT_FOUND":
                raise
        except ValueError:
            log.warning("the record of action %s cannot be read", action)
        return None

    def _key(self, action: str) -> str:
        return f"{self._prefix}actions/{check_digest(action)}"


def _outputs(result: StepResult) -> list[tuple[str, str]]:
    named = [("artifact", result.artifact.digest), ("contract", result.contract)]
    return [(role, digest) for role, digest in named if digest]


def _to_json(message: Message) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
