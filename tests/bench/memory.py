"""How much memory each service takes, idle and during a job: what the requests in deploy/base are set by.

Counted as if the service were alone on its node: its own process, its fork server, and what each child has for itself.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path

import psutil
from tests.bench.inputs import model_and_data
from tests.servers.stack import Stack

from squeezeflow.core.config import PORTS
from squeezeflow.v1 import technique_pb2

SAMPLE_SECONDS = 0.2
IDLE_SECONDS = 8.0


def memory(pid: int) -> int:
    """Gives the MiB of a service: resident memory of its process and fork server, private memory of the children."""
    service = psutil.Process(pid)
    total = service.memory_info().rss
    for server in service.children():
        total += server.memory_info().rss
        for child in server.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += child.memory_full_info().uss
    return total >> 20


def measure() -> dict[str, dict[str, int]]:
    """Samples every service while nothing runs, then during a job over two recipes with training."""
    with tempfile.TemporaryDirectory() as text, Stack(Path(text)) as stack:
        model, data = model_and_data(Path(text))
        pids = {service: stack.pid_of(service) for service in PORTS}
        ended = threading.Event()
        ended.wait(IDLE_SECONDS)
        idle = {service: memory(pid) for service, pid in pids.items()}
        peak = dict(idle)

        def sample() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                for service, pid in pids.items():
                    peak[service] = max(peak[service], memory(pid))

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            fine_tune = technique_pb2.FineTune(epochs=2)
            stack.client().compress(
                model, data=data, recipes=["int8", "prune-int8"], scale=[1 / 255], fine_tune=fine_tune
            )
        finally:
            ended.set()
            sampler.join()
        return {service: {"idle_mib": idle[service], "peak_mib": peak[service]} for service in PORTS}
