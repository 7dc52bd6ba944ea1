"""One Quantize call on a warm worker against a warm bare script; the same call cached; a whole cached job.

The script loads, converts, writes and invokes once. The call does that and more: it fetches, proves and stores. What
the proof and the store take is subtracted, and printed beside the ratio. Rounds are interleaved, medians are quoted.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.inputs import FACES, ROOT, large_model_and_data, model_and_data
from tests.servers.stack import Stack

from squeezeflow.client import Client
from squeezeflow.rpc.channels import open_sync_channel
from squeezeflow.v1 import quantizer_pb2, quantizer_pb2_grpc, step_pb2

ROUNDS = 5
# Time for the spare child to be forked and warmed: a step finds one ready unless steps come one after the other.
SPARE_SECONDS = 6.0
MODES = {"dynamic": "MODE_DYNAMIC", "int8": "MODE_INT8"}


class Script:
    """The warm bare script."""

    def __init__(self, model: Path, data: Path) -> None:
        command = [sys.executable, str(ROOT / "tests/bench/script.py"), "warm", str(model), str(data)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def seconds(self, mode: str, samples: int) -> float:
        """Converts once and gives the seconds it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{mode} {samples}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """Ends the script."""
        self._process.communicate(timeout=20)


def call(stub: Any, request: quantizer_pb2.QuantizeRequest) -> tuple[float, step_pb2.StepResult]:
    """Gives the seconds from request to result, and the result."""
    began = time.perf_counter()
    result = None
    for event in stub.Quantize(request, timeout=300):
        if event.WhichOneof("event") == "result":
            result = event.result
    assert result is not None
    return time.perf_counter() - began, result


def compare(stub: Any, script: Script, mode: str, samples: int, spec: dict[str, Any]) -> dict[str, float]:
    """Interleaves calls and script runs of one mode."""
    ours, net, bare, proofs, stores, cached = [], [], [], [], [], []
    for number in range(ROUNDS):
        time.sleep(SPARE_SECONDS)
        bare.append(script.seconds(mode, samples))
        # Another seed is another action: the work is the same, the record is not there yet.
        params = {"mode": MODES[mode], "calibration_samples": samples, "seed": number + 1000 * samples}
        request = quantizer_pb2.QuantizeRequest(params=params, **spec)
        seconds, result = call(stub, request)
        parts = result.seconds
        ours.append(seconds)
        proofs.append(parts["prove"])
        stores.append(parts["fetch"] + parts["store"])
        net.append(seconds - proofs[-1] - stores[-1])
        cached.append(call(stub, request)[0])
    median = statistics.median
    return {
        "script_s": median(bare),
        "call_s": median(ours),
        "proof_s": median(proofs),
        "store_s": median(stores),
        "ratio": median(net) / median(bare),
        "ratio_whole": median(ours) / median(bare),
        "cached_ms": median(cached) * 1000,
    }


def cached_job(client: Client, model: Path, data: Path) -> float:
    """Gives the seconds of a job whose every step but the benchmarks is on record."""
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        client.compress(model, data=data, recipes=["dynamic", "int8"], scale=[1 / 255])
        seconds = time.perf_counter() - began
    return seconds


def spec_of(client: Client, model: Path, data: Path, scale: list[float]) -> dict[str, Any]:
    """Uploads model and data and gives what every request over them says."""
    return {
        "model": {"artifact": client.upload(model).digest},
        "data": {"artifact": client.upload(data).digest, "scale": scale},
    }


def measure() -> dict[str, Any]:
    """Runs everything on a stack of its own."""
    rows = {}
    with tempfile.TemporaryDirectory() as text, Stack(Path(text)) as stack:
        client = stack.client()
        stub = quantizer_pb2_grpc.QuantizerStub(open_sync_channel(stack.endpoints["quantizer"]))
        model, data = model_and_data(Path(text))
        script, spec = Script(model, data), spec_of(client, model, data, [1 / 255])
        rows["small CNN, dynamic"] = compare(stub, script, "dynamic", 200, spec)
        rows["small CNN, int8"] = compare(stub, script, "int8", 200, spec)
        script.close()
        large, faces = large_model_and_data(Path(text))
        script, spec = Script(large, faces), spec_of(client, large, faces, [])
        rows[f"mini-Xception, int8, {FACES} samples"] = compare(stub, script, "int8", FACES, spec)
        script.close()
        return {"quantize": rows, "cached_job_s": cached_job(client, model, data)}
