"""Workers whose techniques are fakes: the real step protocol, store and cache, without TensorFlow and without children.

One process serves all four workers. What a fake technique does is told by files in a folder that tests write at any
time: `wishes.json` (technique → how long it takes, how it fails) and `runs.txt` (a line for every execution that began,
and for every one that ended). Run as a process of its own: `python -m tests.servers.workers FOLDER STORE_URL PORT`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.servers.processes import bound_to_parent, stop

from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.config import ServiceConfig, load
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import ChildResult, Limits
from squeezeflow.core.store import open_store
from squeezeflow.rpc.server import Mount, Server
from squeezeflow.rpc.steps import StepCall, StepRunner, technique_call
from squeezeflow.rpc.steps_service import steps_mount
from squeezeflow.rpc.tenant import current_tenant
from squeezeflow.v1 import (
    artifact_pb2,
    contract_pb2,
    converter_pb2,
    converter_pb2_grpc,
    evaluator_pb2,
    evaluator_pb2_grpc,
    model_pb2,
    pruner_pb2,
    pruner_pb2_grpc,
    quantizer_pb2,
    quantizer_pb2_grpc,
    step_pb2,
    technique_pb2,
)

TICK = 0.02
CONTRACT = contract_pb2.Contract(
    inputs=[contract_pb2.TensorContract(name="x", shape=[-1, 4], dtype="float32")],
    outputs=[contract_pb2.TensorContract(name="y", shape=[-1, 3], dtype="float32", meaning="probabilities")],
)


class Wishes:
    """The folder through which tests and fake techniques speak."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._wishes = folder / "wishes.json"
        self._runs = folder / "runs.txt"

    def set(self, **wishes: dict[str, Any]) -> None:
        """Says what techniques do: `prune={"seconds": 2}`, `quantize={"fail": "INVARIANT_BROKEN"}`.

        A technique that is at work looks again all the time: wishing for nothing lets it go.
        """
        part = self._wishes.with_suffix(".part")
        part.write_text(json.dumps(wishes))
        part.replace(self._wishes)

    def of(self, technique: str) -> dict[str, Any]:
        """Gives what a technique is to do."""
        wishes = json.loads(self._wishes.read_text()) if self._wishes.exists() else {}
        return dict(wishes.get(technique, {}))

    def note(self, event: str, technique: str) -> None:
        """Writes down that an execution began, ended or was cancelled."""
        with self._runs.open("a") as runs:
            runs.write(f"{event} {technique}\n")

    def count(self, event: str, technique: str = "") -> int:
        """Counts executions by what was written down."""
        lines = self._runs.read_text().splitlines() if self._runs.exists() else []
        return sum(line.startswith(f"{event} {technique}") for line in lines)

    def began(self) -> list[str]:
        """Gives the techniques in the order in which they began."""
        lines = self._runs.read_text().splitlines() if self._runs.exists() else []
        return [line.split()[1] for line in lines if line.startswith("began ")]


class FakeSandbox:
    """Runs fake techniques in this process: they sleep, then write bytes that their inputs and parameters decide."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes

    async def start(self) -> None:
        """Nothing has to be started."""

    async def close(self) -> None:
        """Nothing has to be ended."""

    async def run(
        self,
        entry: str,
        payload: dict[str, Any],
        *,
        limits: Limits,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> ChildResult:
        """Does what the wishes say."""
        technique = payload["entry"]
        self._wishes.note("began", technique)
        began = time.monotonic()
        try:
            while (elapsed := time.monotonic() - began) < (wanted := self._wishes.of(technique).get("seconds", 0)):
                if on_progress is not None:
                    on_progress({"fraction": elapsed / wanted, "stage": "training", "metrics": {"loss": 0.5}})
                await asyncio.sleep(TICK)
        except asyncio.CancelledError:
            self._wishes.note("cancelled", technique)
            raise
        wish = self._wishes.of(technique)
        if "fail" in wish:
            raise SqueezeflowError(wish["fail"], f"{technique} fails as it was told", metadata={"layer": "dense"})
        self._wishes.note("ended", technique)
        return ChildResult(value=_outputs(technique, payload), peak_memory_mib=1.0, seconds=time.monotonic() - began)


def _outputs(technique: str, payload: dict[str, Any]) -> dict[str, Any]:
    if technique in ("evaluate", "benchmark"):
        return {"artifact": None, "contract": None, "logs": None, "result": _encoded(_figures(technique, payload))}
    kind = artifact_pb2.ARTIFACT_KIND_KERAS if technique == "prune" else artifact_pb2.ARTIFACT_KIND_TFLITE
    if technique == "export":
        kind = artifact_pb2.ARTIFACT_KIND_KERAS
    path = Path(payload["workdir"]) / "out"
    source = Path(payload["artifacts"]["model"][1]).read_bytes()
    path.write_bytes(b"\x00\x00\x00\x00TFL3" + technique.encode() + payload["params"].encode() + source)
    result = step_pb2.StepResult(
        sizes=step_pb2.Sizes(raw_bytes=path.stat().st_size, deflated_bytes=9),
        metrics={"sqnr_db": step_pb2.Metric(value=30.0)} if technique == "quantize" else {},
        invariants=[step_pb2.Invariant(name="finite", passed=True, detail=technique)],
        layers=[step_pb2.LayerOutcome(layer="dense", class_name="Dense", applied=True)],
        notes=[f"{technique} was faked"],
    )
    return {
        "artifact": [kind, str(path)],
        "contract": base64.b64encode(CONTRACT.SerializeToString()).decode(),
        "logs": None,
        "result": _encoded(result),
    }


def _figures(technique: str, payload: dict[str, Any]) -> step_pb2.StepResult:
    metrics = {"latency_p50_ms": 1.5} if technique == "benchmark" else {"accuracy": 0.9}
    if "baseline" in payload["artifacts"]:
        metrics |= {"latency_ratio": 0.5} if technique == "benchmark" else {"accuracy_drop": 0.01}
    return step_pb2.StepResult(metrics={name: step_pb2.Metric(value=value) for name, value in metrics.items()})


def _encoded(result: step_pb2.StepResult) -> str:
    return base64.b64encode(result.SerializeToString()).decode()


class FakeWorkers(
    converter_pb2_grpc.ConverterServicer,
    quantizer_pb2_grpc.QuantizerServicer,
    pruner_pb2_grpc.PrunerServicer,
    evaluator_pb2_grpc.EvaluatorServicer,
):
    """Serves the rpcs of all workers."""

    def __init__(self, runner: StepRunner, wishes: Wishes) -> None:
        self._runner = runner
        self._wishes = wishes

    async def DescribeModel(
        self, request: converter_pb2.DescribeModelRequest, context: Any
    ) -> model_pb2.ModelDescription:
        wish = self._wishes.of("describe")
        if "fail" in wish:
            raise SqueezeflowError(wish["fail"], "the model is as it was told")
        artifact = await asyncio.to_thread(self._runner.artifacts(current_tenant()).stat, request.model.artifact)
        supports = [
            model_pb2.TechniqueSupport(technique=name, supported=not why_not, reason=why_not)
            for name, why_not in wish.get("techniques", {}).items()
        ]
        return model_pb2.ModelDescription(
            artifact=artifact,
            format="tf_keras .keras",
            contract=CONTRACT,
            techniques=supports,
            findings=wish.get("findings", []),
        )

    async def Convert(self, request: converter_pb2.ConvertRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        async for event in self._runner.stream(technique_call("convert", "convert", request)):
            yield event

    async def Export(self, request: converter_pb2.ExportRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        async for event in self._runner.stream(technique_call("export", "export", request)):
            yield event

    async def Quantize(self, request: quantizer_pb2.QuantizeRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        async for event in self._runner.stream(technique_call("quantize", "quantize", request)):
            yield event

    async def Prune(self, request: pruner_pb2.PruneRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        async for event in self._runner.stream(technique_call("prune", "prune", request)):
            yield event

    async def Evaluate(self, request: evaluator_pb2.EvaluateRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        inputs = {"model": request.model.artifact, "baseline": request.baseline.artifact, "data": request.data.artifact}
        call = StepCall(technique="evaluate", entry="evaluate", params=technique_pb2.Convert(), inputs=inputs)
        async for event in self._runner.stream(call):
            yield event

    async def Benchmark(
        self, request: evaluator_pb2.BenchmarkRequest, context: Any
    ) -> AsyncIterator[step_pb2.StepEvent]:
        inputs = {"model": request.model.artifact, "baseline": request.baseline.artifact}
        call = StepCall("benchmark", "benchmark", technique_pb2.Convert(), inputs, cacheable=False)
        async for event in self._runner.stream(call):
            yield event


def mounts(runner: StepRunner, wishes: Wishes) -> list[Mount]:
    """Gives what a process of fake workers serves."""
    fake = FakeWorkers(runner, wishes)
    return [
        Mount("squeezeflow.v1.Converter", converter_pb2_grpc.add_ConverterServicer_to_server, fake),
        Mount("squeezeflow.v1.Quantizer", quantizer_pb2_grpc.add_QuantizerServicer_to_server, fake),
        Mount("squeezeflow.v1.Pruner", pruner_pb2_grpc.add_PrunerServicer_to_server, fake),
        Mount("squeezeflow.v1.Evaluator", evaluator_pb2_grpc.add_EvaluatorServicer_to_server, fake),
        steps_mount(runner),
    ]


def configuration(folder: Path, store_url: str, port: int, **environ: str) -> ServiceConfig:
    """Gives the configuration of fake workers."""
    return load(
        "converter",
        {
            "SQUEEZEFLOW_STORE": store_url,
            "SQUEEZEFLOW_LISTEN": f"127.0.0.1:{port}",
            "SQUEEZEFLOW_WORKDIR": str(folder / f"work-{os.getpid()}"),
            "SQUEEZEFLOW_MAX_CONCURRENT_STEPS": "4",
            "SQUEEZEFLOW_SHUTDOWN_SECONDS": "0",
            **environ,
        },
    )


def runner_of(config: ServiceConfig, wishes: Wishes) -> StepRunner:
    """Gives a step runner whose techniques are fakes."""
    sandbox: Any = FakeSandbox(wishes)
    return StepRunner(config, open_store(config.store_url), sandbox, {"fake": "1"})


async def serve(folder: Path, store_url: str, port: int) -> None:
    """Serves until this process is killed."""
    config = configuration(folder, store_url, port)
    wishes = Wishes(folder)
    runner = runner_of(config, wishes)
    async with Server(config, mounts(runner, wishes)) as server:
        runner.bound(server.address)
        await server.set_serving(True)
        await asyncio.Event().wait()


class WorkerProcess:
    """Fake workers in a process of their own, to be killed."""

    def __init__(self, folder: Path, store_url: str, port: int) -> None:
        command = ["-m", "tests.servers.workers", str(folder), store_url, str(port)]
        self._process = subprocess.Popen(bound_to_parent([sys.executable, *command]))

    def alive(self) -> bool:
        """Tells whether it runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends it at once."""
        stop(self._process)


def put_file(store_url: str, tenant: str, kind: int, path: Path) -> str:
    """Stores a file and gives its digest."""
    return Artifacts(open_store(store_url), tenant).write(kind, path).digest


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
