"""A technique for tests of the step protocol: its model file says, in JSON, what it should do.

It runs for real, in a sandbox child of a real worker; only what it does is small.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.v1 import artifact_pb2, contract_pb2, step_pb2


def run(params: Any, inputs: StepInputs, report: Report) -> StepOutputs:
    """Does what the model file asks for."""
    wish = json.loads(inputs.model.path.read_text())
    if "count" in wish:
        with Path(wish["count"]).open("a") as runs:
            runs.write(f"{os.getpid()}\n")
    resumed = _keep(wish, inputs) if inputs.checkpoint else ""
    if resumed and wish.get("once"):
        wish = {}
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < wish.get("seconds", 0):
        report(elapsed / wish["seconds"], "training", epoch=1, metrics={"loss": 1.0 - elapsed / wish["seconds"]})
        time.sleep(0.02)
    if "raise" in wish:
        raise SqueezeflowError(wish["raise"], "as the model asked", metadata={"layer": "conv"})
    if wish.get("crash"):
        print("about to die", flush=True)
        ctypes.string_at(0)
    if wish.get("eat"):
        hoard = [b"x" * (32 << 20) for _ in range(wish["eat"] // 32)]
        time.sleep(len(hoard) + 30)
    out = inputs.workdir / "out.tflite"
    out.write_bytes(b"\x00\x00\x00\x00TFL3" + json.dumps([wish, params.sparsity]).encode())
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, out),
        contract=contract_pb2.Contract(labels=["a", "b"]),
        invariants=(step_pb2.Invariant(name="finite", passed=True, detail="32 samples"),),
        notes=("toy", *([f"resumed from {resumed}"] if resumed else [])),
    )


def _keep(wish: dict[str, Any], inputs: StepInputs) -> str:
    """Writes the checkpoint that the model file asks for and gives the one that was there."""
    assert inputs.checkpoint is not None
    path, before = inputs.checkpoint.path, ""
    if path.exists():
        before = path.read_text()
    for state in wish.get("states", []):
        part = path.with_suffix(".part")
        part.write_text(state)
        part.replace(path)
        inputs.checkpoint.saved()
    return before
