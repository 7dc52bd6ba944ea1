"""What the engine keeps of a job, as plain JSON: the record it was started with, and the outcome of every step.

Job and candidates as clients see them are made from these two (`report.assemble`), so a restarted orchestrator shows
what the one before it knew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from squeezeflow.orchestrator.plan import CandidatePlan, Node, Plan, Refusal
from squeezeflow.v1 import errors_pb2, jobs_pb2, step_pb2

Json = dict[str, Any]


@dataclass(frozen=True)
class JobRecord:
    """A job as it was accepted.

    Attributes:
        created: seconds since the epoch.
        spec: with recipes and defaults filled in.
        notes: what the checks found worth telling.
    """

    tenant: str
    id: str
    created: float
    spec: jobs_pb2.JobSpec
    plan: Plan
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name in the engine; unique over tenants."""
        return f"{self.tenant}:{self.id}"

    def to_json(self) -> Json:
        """Gives the form that the engine keeps."""
        return {
            "tenant": self.tenant,
            "id": self.id,
            "created": self.created,
            "spec": message_to_json(self.spec),
            "plan": dataclasses.asdict(self.plan),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, value: Json) -> JobRecord:
        """Gives the record back from its kept form."""
        return cls(
            tenant=value["tenant"],
            id=value["id"],
            created=value["created"],
            spec=json_format.ParseDict(value["spec"], jobs_pb2.JobSpec(), ignore_unknown_fields=True),
            plan=_plan(value["plan"]),
            notes=tuple(value["notes"]),
        )


@dataclass(frozen=True)
class Accepted:
    """Where a step runs: told by the worker, kept so that a later call goes back there."""

    worker: str
    action: str
    attempts: int
    started: float

    def to_json(self) -> Json:
        """Gives the form that the engine keeps."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Json) -> Accepted:
        """Gives it back from its kept form."""
        return cls(**{f.name: value[f.name] for f in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Outcome:
    """How a step ended: a result or an error, never both.

    Attributes:
        attempts: calls made; 0 for a step that was never called.
        started, ended: seconds since the epoch; 0 for a step that was never called.
        metrics: the last ones told while training.
    """

    result: step_pb2.StepResult | None = None
    error: errors_pb2.Error | None = None
    worker: str = ""
    action: str = ""
    attempts: int = 0
    started: float = 0.0
    ended: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Gives the form that the engine keeps."""
        value: Json = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        value["result"] = message_to_json(self.result) if self.result is not None else None
        value["error"] = message_to_json(self.error) if self.error is not None else None
        return value

    @classmethod
    def from_json(cls, value: Json) -> Outcome:
        """Gives it back from its kept form."""
        plain = {f.name: value[f.name] for f in dataclasses.fields(cls)}
        if plain["result"] is not None:
            plain["result"] = json_format.ParseDict(plain["result"], step_pb2.StepResult(), ignore_unknown_fields=True)
        if plain["error"] is not None:
            plain["error"] = json_format.ParseDict(plain["error"], errors_pb2.Error(), ignore_unknown_fields=True)
        return cls(**plain)


@dataclass(frozen=True)
class StepView:
    """A step as it stands: waiting, running with its last progress, or ended."""

    accepted: Accepted | None = None
    cached: bool = False
    running: bool = False
    progress: step_pb2.StepProgress = field(default_factory=step_pb2.StepProgress)
    outcome: Outcome | None = None


def message_to_json(message: Message) -> Json:
    """Gives proto JSON with proto field names."""
    value: Json = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return value


def _plan(value: Mapping[str, Any]) -> Plan:
    nodes = tuple(
        Node(
            **{
                **node,
                "after": tuple(node["after"]),
                "refusal": Refusal(**node["refusal"]) if node["refusal"] is not None else None,
            }
        )
        for node in value["nodes"]
    )
    candidates = tuple(CandidatePlan(**{**each, "steps": tuple(each["steps"])}) for each in value["candidates"])
    return Plan(nodes, candidates)
