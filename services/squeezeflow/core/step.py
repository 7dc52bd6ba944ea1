"""What a technique sees: paths in, paths out, a way to report progress. No gRPC, no store, no digests.

`execute` is what a sandbox child runs for a step: it turns the parent's JSON payload into `StepInputs`,
calls the technique, and turns its `StepOutputs` into JSON.
"""

from __future__ import annotations

import base64
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import Message

from squeezeflow.core.sizes import sizes_of
from squeezeflow.v1 import contract_pb2, step_pb2


@dataclass(frozen=True)
class ArtifactPath:
    """An artifact on this machine's disk: a file or a folder of the given `ArtifactKind`."""

    kind: int
    path: Path


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit keeps its state, so that it can go on where a killed one stopped; passed on to `finetune.fit`.

    Attributes:
        path: the one file. When it exists as the step begins, it is the state of an earlier run of the same action.
        seconds: least time between two writes of it; 0: at the end of every epoch.
        saved: to be called when the file was replaced, as a whole, by a newer state.
        action: digest of the action; the state of another one is not taken up.
    """

    path: Path
    seconds: float = 0.0
    saved: Callable[[], None] = lambda: None
    action: str = ""


@dataclass(frozen=True)
class StepInputs:
    """What a technique reads.

    Attributes:
        artifacts: by role: `model`, `data`, `contract`, `baseline`, `baseline_contract`.
        workdir: an empty folder of this step; outputs are written into it, all of it is removed after the step.
        signature: of a SavedModel; empty for the default.
        scale, offset: the affine of the request; empty tuples where it was not given.
        threads: how many threads this step may use.
        checkpoint: where a technique that trains keeps its state; None: nowhere.
    """

    artifacts: Mapping[str, ArtifactPath]
    workdir: Path
    signature: str = ""
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    threads: int = 1
    checkpoint: Checkpoint | None = None

    @property
    def model(self) -> ArtifactPath:
        """The model that the technique transforms or measures."""
        return self.artifacts["model"]

    @property
    def data(self) -> ArtifactPath | None:
        """The dataset, where the request has one."""
        return self.artifacts.get("data")


@dataclass(frozen=True)
class StepOutputs:
    """What a technique made and proved; see `StepResult` for the meaning of each part."""

    artifact: ArtifactPath | None = None
    contract: contract_pb2.Contract | None = None
    metrics: Mapping[str, step_pb2.Metric] = field(default_factory=dict)
    invariants: tuple[step_pb2.Invariant, ...] = ()
    layers: tuple[step_pb2.LayerOutcome, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    logs: Path | None = None


class Report(Protocol):
    """Tells the parent how far the step is. Cheap: call it as often as there is news."""

    def __call__(
        self,
        fraction: float,
        stage: str,
        *,
        epoch: int = 0,
        metrics: Mapping[str, float] | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        """Reports a fraction from 0 to 1 and what is being done."""


TechniqueRun = Callable[[Any, StepInputs, Report], StepOutputs]


def encode_request(entry: str, params: Message, inputs: StepInputs) -> dict[str, Any]:
    """Gives the JSON payload for `execute`; `entry` is `module:function` of a `TechniqueRun`."""
    kept = inputs.checkpoint
    return {
        "entry": entry,
        "params_module": type(params).__module__,
        "params_type": type(params).__name__,
        "params": base64.b64encode(params.SerializeToString()).decode(),
        "artifacts": {role: [a.kind, str(a.path)] for role, a in inputs.artifacts.items()},
        "workdir": str(inputs.workdir),
        "signature": inputs.signature,
        "scale": inputs.scale,
        "offset": inputs.offset,
        "threads": inputs.threads,
        "checkpoint": [str(kept.path), kept.seconds, kept.action] if kept else None,
    }


def execute(payload: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs one technique in the sandbox child; errors of the technique pass through."""
    module, function = payload["entry"].split(":")
    params = getattr(importlib.import_module(payload["params_module"]), payload["params_type"])()
    params.ParseFromString(base64.b64decode(payload["params"]))
    inputs = StepInputs(
        artifacts={role: ArtifactPath(kind, Path(path)) for role, (kind, path) in payload["artifacts"].items()},
        workdir=Path(payload["workdir"]),
        signature=payload["signature"],
        scale=tuple(payload["scale"]),
        offset=tuple(payload["offset"]),
        threads=payload["threads"],
    )

    news: dict[str, Any] = {}

    def saved() -> None:
        # A number that only grows: of several reports in a short time only the newest arrives.
        news["checkpoint"] = news.get("checkpoint", 0) + 1
        report(dict(news))

    def tell(
        fraction: float,
        stage: str,
        *,
        epoch: int = 0,
        metrics: Mapping[str, float] | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        news.update(
            {
                "fraction": fraction,
                "stage": stage,
                "epoch": epoch,
                "metrics": dict(metrics or {}),
                "eta_seconds": eta_seconds,
            }
        )
        report(dict(news))

    if payload["checkpoint"] is not None:
        path, seconds, action = payload["checkpoint"]
        inputs = replace(inputs, checkpoint=Checkpoint(Path(path), seconds, saved, action))

    began = time.perf_counter()
    run: TechniqueRun = getattr(importlib.import_module(module), function)
    outputs = run(params, inputs, tell)
    ran = time.perf_counter() - began
    result = step_pb2.StepResult(
        sizes=sizes_of(outputs.artifact.path) if outputs.artifact else None,
        metrics=outputs.metrics,
        invariants=outputs.invariants,
        layers=outputs.layers,
        notes=outputs.notes,
        seconds={**outputs.seconds, "run": ran},
    )
    return {
        "artifact": [outputs.artifact.kind, str(outputs.artifact.path)] if outputs.artifact else None,
        "contract": base64.b64encode(outputs.contract.SerializeToString()).decode() if outputs.contract else None,
        "logs": str(outputs.logs) if outputs.logs else None,
        "result": base64.b64encode(result.SerializeToString()).decode(),
    }
