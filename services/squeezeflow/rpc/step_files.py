"""What a step's child reads and writes, on its way between the store and the step's folder."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.contracts import encode
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import ChildResult
from squeezeflow.core.step import ArtifactPath
from squeezeflow.v1 import artifact_pb2, contract_pb2, step_pb2


def fetch_artifacts(artifacts: Artifacts, inputs: Mapping[str, str], folder: Path) -> dict[str, ArtifactPath]:
    """Writes artifacts, digests by role, below a folder and gives where they are."""
    paths = {}
    for role, digest in inputs.items():
        (folder / role).mkdir()
        paths[role] = artifacts.fetch(digest, folder / role)
    return paths


def progress_of(news: Mapping[str, Any]) -> step_pb2.StepProgress:
    """Gives the message of what a child tells."""
    progress = step_pb2.StepProgress(
        fraction=float(news.get("fraction", 0)),
        stage=str(news.get("stage", "")),
        epoch=int(news.get("epoch", 0)),
        metrics={str(name): float(value) for name, value in dict(news.get("metrics") or {}).items()},
    )
    if news.get("eta_seconds") is not None:
        progress.eta.FromMilliseconds(int(float(news["eta_seconds"]) * 1000))
    return progress


def store_outputs(artifacts: Artifacts, child: ChildResult, folder: Path) -> step_pb2.StepResult:
    """Stores what the child made and gives its result; the child is not trusted with paths outside its folder."""
    result = step_pb2.StepResult.FromString(base64.b64decode(child.value["result"]))
    if child.value["artifact"] is not None:
        kind, text = child.value["artifact"]
        result.artifact.CopyFrom(artifacts.write(kind, _inside(folder, text)))
    if child.value["logs"] is not None:
        logs = _inside(folder, child.value["logs"])
        result.logs.CopyFrom(artifacts.write(artifact_pb2.ARTIFACT_KIND_LOGS, logs))
    if child.value["contract"] is not None:
        contract = contract_pb2.Contract.FromString(base64.b64decode(child.value["contract"]))
        path = folder / "contract.json"
        path.write_bytes(encode(contract))
        result.contract = artifacts.write(artifact_pb2.ARTIFACT_KIND_CONTRACT, path).digest
    return result


def _inside(folder: Path, text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise SqueezeflowError("INTERNAL", f"the technique gave {path}, which is outside its folder")
    return path
