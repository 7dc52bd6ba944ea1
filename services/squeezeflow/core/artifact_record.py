"""The record that makes an artifact exist: what stands in `artifacts/<digest>`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from squeezeflow.core.canonical import canonical_json
from squeezeflow.core.kinds import kind_named, kind_word
from squeezeflow.v1.artifact_pb2 import Artifact, ArtifactKind


@dataclass(frozen=True)
class ArtifactRecord:
    """Kind, size and time of an artifact.

    Attributes:
        kind: an `ArtifactKind`.
        size: bytes of the blob.
        create_time: when the bytes were first stored.
        damaged: whether the last read found other bytes than the digest names.
    """

    kind: int
    size: int
    create_time: datetime
    damaged: bool = False

    def encode(self) -> bytes:
        """Gives the record as JSON."""
        value = {"kind": kind_word(self.kind), "size": self.size, "create_time": self.create_time.isoformat()}
        return canonical_json(value | ({"damaged": True} if self.damaged else {})).encode()

    @classmethod
    def decode(cls, data: bytes) -> ArtifactRecord:
        """Reads a record; ValueError when it cannot be one."""
        try:
            value = json.loads(data)
            created = datetime.fromisoformat(value["create_time"])
            return cls(kind_named(value["kind"]), int(value["size"]), created, bool(value.get("damaged")))
        except (KeyError, TypeError) as error:
            raise ValueError("no artifact record") from error

    def artifact(self, digest: str) -> Artifact:
        """Gives the message that describes the artifact."""
        artifact = Artifact(digest=digest, kind=cast(ArtifactKind, self.kind), size_bytes=self.size)
        artifact.create_time.FromDatetime(self.create_time)
        return artifact
