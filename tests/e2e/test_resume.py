"""A real worker killed in the middle of training: the next one goes on, and the result is that of a quiet run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import psutil
from tests.servers.processes import bound_to_parent, free_ports

from squeezeflow.client.health import HealthWatch
from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.store import Store, open_store
from squeezeflow.rpc.channels import open_sync_channel
from squeezeflow.rpc.tenant import tenant_metadata
from squeezeflow.v1 import artifact_pb2, pruner_pb2, pruner_pb2_grpc, step_pb2

EPOCHS = 8
# The same inputs under three tenants are three runs of one action that know nothing of each other.
SAME_WORKER, OTHER_WORKER, QUIET = "same-worker", "other-worker", "quiet"


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.05)


@contextmanager
def worker(folder: Path, address: str, store_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a pruner that writes checkpoints as often as they cost little; kills it where the test has not."""
    env = {
        **os.environ,
        "SQUEEZEFLOW_STORE": store_url,
        "SQUEEZEFLOW_LISTEN": address,
        "SQUEEZEFLOW_WORKDIR": str(folder / f"work-{time.monotonic_ns()}"),
        "SQUEEZEFLOW_CHECKPOINT_SECONDS": "0.01",
        "SQUEEZEFLOW_MAX_CONCURRENT_STEPS": "2",
    }
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            bound_to_parent([sys.executable, "-m", "squeezeflow.pruner"]), env=env, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until a worker takes calls."""

    def serving() -> bool:
        assert process.poll() is None, "the worker did not start, see its log"
        watch = HealthWatch(address)
        try:
            return next(watch.states(), False)
        finally:
            watch.close()

    until(serving, 90, "the worker's start")


def request(store: Store, model: Path, data: Path) -> pruner_pb2.PruneRequest:
    """Stores the inputs for every tenant and gives the request, the same for all of them."""
    for tenant in (SAME_WORKER, OTHER_WORKER, QUIET):
        artifacts = Artifacts(store, tenant)
        digests = (
            artifacts.write(artifact_pb2.ARTIFACT_KIND_KERAS, model).digest,
            artifacts.write(artifact_pb2.ARTIFACT_KIND_DATASET, data).digest,
        )
    fine_tune = {"epochs": EPOCHS, "batch_size": 16, "seed": 11}
    asked = pruner_pb2.PruneRequest(params={"fine_tune": fine_tune})
    asked.model.artifact, asked.data.artifact = digests
    asked.data.scale.append(1 / 255)
    return asked


def prune(address: str, asked: pruner_pb2.PruneRequest, tenant: str) -> step_pb2.StepResult:
    """Calls the rpc and gives its result."""
    with open_sync_channel(address) as channel:
        events = list(pruner_pb2_grpc.PrunerStub(channel).Prune(asked, metadata=tenant_metadata(tenant), timeout=120))
    return events[-1].result


def checkpoints(store: Store, tenant: str) -> list[str]:
    return store.list(f"tenants/{tenant}/checkpoints/")


def test_a_killed_training_goes_on_after_a_restart_and_on_another_worker(
    tmp_path: Path, cnn: Path, few_images: Path
) -> None:
    (tmp_path / "store").mkdir()
    store_url = f"dir:{tmp_path / 'store'}"
    store = open_store(store_url)
    first, second = (f"127.0.0.1:{port}" for port in free_ports(2))
    asked = request(store, cnn, few_images)
    ended: list[str] = []

    def call(tenant: str) -> None:
        try:
            prune(first, asked, tenant)
        except grpc.RpcError:
            ended.append(tenant)

    with ExitStack() as stack:
        process = stack.enter_context(worker(tmp_path, first, store_url))
        other = stack.enter_context(worker(tmp_path, second, store_url))
        wait_for(first, process)
        calls = [threading.Thread(target=call, args=(tenant,)) for tenant in (SAME_WORKER, OTHER_WORKER)]
        for each in calls:
            each.start()
        until(lambda: all(checkpoints(store, tenant) for tenant in (SAME_WORKER, OTHER_WORKER)), 90, "a checkpoint")
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for each in calls:
            each.join(30)
        assert sorted(ended) == [OTHER_WORKER, SAME_WORKER], "training had ended before the worker was killed"
        until(lambda: not any(child.is_running() for child in family), 10, "the end of the killed worker's children")
        restarted = stack.enter_context(worker(tmp_path, first, store_url))
        wait_for(second, other)
        results = {tenant: prune(second, asked, tenant) for tenant in (OTHER_WORKER, QUIET)}
        wait_for(first, restarted)
        results[SAME_WORKER] = prune(first, asked, SAME_WORKER)

    quiet = results.pop(QUIET)
    assert not any("resumed" in note for note in quiet.notes)
    for tenant, result in results.items():
        resumed = [note for note in result.notes if note.startswith("resumed from ")]
        assert len(resumed) == 1, tenant
        assert re.match(r"resumed from (batch \d+ of )?epoch [1-8]: ", resumed[0])
        assert [note for note in result.notes if note not in resumed] == list(quiet.notes)
        assert result.action == quiet.action
        assert result.artifact.digest == quiet.artifact.digest
        assert result.contract == quiet.contract
        assert (result.metrics, result.layers) == (quiet.metrics, quiet.layers)
        assert checkpoints(store, tenant) == []
