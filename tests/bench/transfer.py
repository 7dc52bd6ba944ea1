"""1 GiB through WriteArtifact and ReadArtifact of a running orchestrator: throughput, and that memory stays flat."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import psutil
from tests.servers.stack import Stack

from squeezeflow.v1 import artifact_pb2

SIZE = 1 << 30
BLOCK = 16 << 20


def measure() -> dict[str, float]:
    """Writes and reads one artifact of incompressible bytes."""
    with tempfile.TemporaryDirectory() as text, Stack(Path(text)) as stack:
        source, back = Path(text) / "big.npz", Path(text) / "back.npz"
        with source.open("wb") as file:
            for _ in range(SIZE // BLOCK):
                file.write(os.urandom(BLOCK))
        server, client = psutil.Process(stack.pid_of("orchestrator")), stack.client()
        before = server.memory_info().rss
        began = time.perf_counter()
        digest = client.upload(source, artifact_pb2.ARTIFACT_KIND_DATASET).digest
        wrote = time.perf_counter()
        client.download(digest, back)
        read = time.perf_counter()
        peak = _peak(server.pid)
        mebibytes = SIZE / (1 << 20)
        return {
            "write_mib_per_s": mebibytes / (wrote - began),
            "read_mib_per_s": mebibytes / (read - wrote),
            "server_memory_growth_mib": (peak - before) / (1 << 20),
        }


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel tells no peak memory")
