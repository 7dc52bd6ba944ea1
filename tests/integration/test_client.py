"""The Python client against a real server: artifacts over a real store, jobs over a scripted `Jobs` service."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeezeflow.client import Client
from squeezeflow.core.config import load
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import Store, open_store
from squeezeflow.orchestrator.artifacts_service import ArtifactsService
from squeezeflow.rpc.server import Mount, Server
from squeezeflow.rpc.tenant import current_tenant
from squeezeflow.v1 import artifact_pb2, artifacts_pb2_grpc, jobs_pb2, jobs_pb2_grpc


class ScriptedJobs(jobs_pb2_grpc.JobsServicer):
    """Answers as each job id says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.created: list[jobs_pb2.CreateJobRequest] = []
        self.cancelled: list[str] = []
        self.watched = 0

    async def CreateJob(self, request: jobs_pb2.CreateJobRequest, context: Any) -> jobs_pb2.Job:
        self.created.append(request)
        return jobs_pb2.Job(id="steady", state=jobs_pb2.JOB_STATE_QUEUED, spec=request.spec)

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Any) -> jobs_pb2.Job:
        if request.id == "slow":
            await asyncio.sleep(30)
        if request.id != "steady":
            raise SqueezeflowError(
                "NOT_FOUND", f"there is no job {request.id}: list them", metadata={"job": request.id}
            )
        return jobs_pb2.Job(id=f"{request.id}-of-{current_tenant()}")

    async def WatchJob(
        self, request: jobs_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        self.watched += 1
        yield jobs_pb2.WatchJobResponse(job=jobs_pb2.Job(id=request.id, state=jobs_pb2.JOB_STATE_RUNNING))
        if request.id == "lost":
            raise SqueezeflowError("NOT_FOUND", "it is gone: list the jobs")
        if request.id == "flaky" and self.watched == 1:
            raise SqueezeflowError("WORKER_UNAVAILABLE", "the orchestrator is being restarted: wait")
        yield jobs_pb2.WatchJobResponse(job=jobs_pb2.Job(id=request.id, state=jobs_pb2.JOB_STATE_SUCCEEDED))

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Any) -> jobs_pb2.Job:
        self.cancelled.append(request.id)
        return jobs_pb2.Job(id=request.id, state=jobs_pb2.JOB_STATE_CANCELLING)


class Running:
    """A server in a thread of its own: the client is blocking."""

    def __init__(self, folder: Path) -> None:
        self.store: Store = open_store(f"dir:{folder / 'store'}")
        self.jobs = ScriptedJobs()
        self.address = ""
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._up, self._down = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        config = load("orchestrator", {"SQUEEZEFLOW_STORE": "dir:unused"})
        artifacts = ArtifactsService(self.store, self._folder / "scratch")
        mounts = [
            Mount("squeezeflow.v1.Artifacts", artifacts_pb2_grpc.add_ArtifactsServicer_to_server, artifacts),
            Mount("squeezeflow.v1.Jobs", jobs_pb2_grpc.add_JobsServicer_to_server, self.jobs),
        ]
        async with Server(replace(config, listen="127.0.0.1:0", shutdown_seconds=0.2), mounts) as server:
            self.address = server.address
            self._up.set()
            await self._down.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    running.jobs.watched = 0
    with Client(running.address) as client:
        yield client


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    values = np.frombuffer(os.urandom(3 << 20), dtype=np.uint8)
    np.savez(path, x_train=values)
    return path


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\x08\x01" + os.urandom(100))
    (folder / "variables" / "variables.index").write_bytes(os.urandom(2 << 20))
    return folder


def test_a_file_comes_back_as_it_went(client: Client, data_file: Path, tmp_path: Path) -> None:
    artifact = client.upload(data_file)
    assert artifact.kind == artifact_pb2.ARTIFACT_KIND_DATASET
    assert artifact.size_bytes == data_file.stat().st_size
    assert client.download(artifact.digest, tmp_path / "back.npz").read_bytes() == data_file.read_bytes()


def test_a_folder_comes_back_as_it_went(client: Client, model_folder: Path, tmp_path: Path) -> None:
    artifact = client.upload(model_folder)
    assert artifact.kind == artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
    back = client.download(artifact.digest, tmp_path / "back")
    for path in ("saved_model.pb", "variables/variables.index"):
        assert (back / path).read_bytes() == (model_folder / path).read_bytes()


def test_what_is_stored_already_is_not_sent_again(client: Client, data_file: Path) -> None:
    sent: list[int] = []
    first = client.upload(data_file, on_bytes=sent.append)
    assert sum(sent) == data_file.stat().st_size
    assert max(sent) <= 1 << 20
    sent.clear()
    assert client.upload(data_file, on_bytes=sent.append) == first
    assert sent == []


def test_another_tenant_does_not_see_an_artifact(client: Client, running: Running, data_file: Path) -> None:
    digest = client.upload(data_file).digest
    with Client(running.address, tenant="other") as other:
        with pytest.raises(SqueezeflowError) as caught:
            other.get_artifact(digest)
        assert caught.value.reason == "NOT_FOUND"
        assert other.get_job("steady").id == "steady-of-other"


def test_a_flipped_bit_in_the_store_is_told_and_leaves_no_file(
    client: Client, running: Running, data_file: Path, tmp_path: Path
) -> None:
    digest = client.upload(data_file).digest
    key = f"tenants/default/blobs/{digest}"
    damaged = bytearray(running.store.get_bytes(key))
    damaged[-1] ^= 1
    running.store.put_bytes(key, bytes(damaged))
    folder = tmp_path / "out"
    with pytest.raises(SqueezeflowError) as caught:
        client.download(digest, folder / "back.npz")
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert list(folder.iterdir()) == []


def test_a_folder_in_the_way_is_kept_unless_it_may_be_replaced(
    client: Client, model_folder: Path, tmp_path: Path
) -> None:
    digest = client.upload(model_folder).digest
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(SqueezeflowError, match="target") as caught:
        client.download(digest, target)
    assert caught.value.reason == "INVALID_PARAMETER"
    assert (target / "mine.txt").exists()
    client.download(digest, target, replace=True)
    assert sorted(path.name for path in target.iterdir()) == ["saved_model.pb", "variables"]


def test_a_path_that_is_not_there_is_told_before_any_call() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(SqueezeflowError, match=r"nowhere\.npz"):
        client.upload("nowhere.npz")


def test_a_server_that_is_not_there_is_told_with_its_address() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(SqueezeflowError, match=r"127\.0\.0\.1:1") as caught:
        client.get_job("steady")
    assert caught.value.reason == "WORKER_UNAVAILABLE"


def test_an_answer_that_does_not_come_is_timed_out(running: Running) -> None:
    with Client(running.address, timeout=0.5) as client, pytest.raises(SqueezeflowError) as caught:
        client.get_job("slow")
    assert caught.value.reason == "TIMED_OUT"


def test_a_server_s_refusal_comes_with_reason_message_and_details(client: Client) -> None:
    with pytest.raises(SqueezeflowError) as caught:
        client.get_job("none")
    assert caught.value.reason == "NOT_FOUND"
    assert caught.value.metadata == {"job": "none"}


def test_a_service_whose_address_is_not_known_is_named_with_what_to_give(client: Client) -> None:
    with pytest.raises(SqueezeflowError, match="SQUEEZEFLOW_CONVERTER"):
        client.describe("a" * 64)


def test_a_watch_goes_on_after_the_server_was_away(client: Client) -> None:
    states = [job.state for job in client.watch_job("flaky")]
    assert states == [jobs_pb2.JOB_STATE_RUNNING, jobs_pb2.JOB_STATE_RUNNING, jobs_pb2.JOB_STATE_SUCCEEDED]


def test_a_watch_of_a_job_that_is_gone_ends_at_once(client: Client, running: Running) -> None:
    with pytest.raises(SqueezeflowError) as caught:
        list(client.watch_job("lost"))
    assert caught.value.reason == "NOT_FOUND"
    assert running.jobs.watched == 1


def test_a_job_goes_from_files_to_its_end(
    client: Client, running: Running, model_folder: Path, data_file: Path
) -> None:
    updates: list[int] = []
    job = client.compress(
        model_folder, data_file, ["int8"], scale=[1 / 255], on_update=lambda job: updates.append(job.state)
    )
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED
    assert updates[-1] == jobs_pb2.JOB_STATE_SUCCEEDED
    spec = running.jobs.created[-1].spec
    assert [recipe.name for recipe in spec.recipes] == ["int8"]
    assert client.get_artifact(spec.model.artifact).kind == artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
    assert client.get_artifact(spec.data.artifact).kind == artifact_pb2.ARTIFACT_KIND_DATASET


def test_ctrl_c_while_watching_cancels_the_job(client: Client, running: Running, model_folder: Path) -> None:
    def interrupt(job: jobs_pb2.Job) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.compress(model_folder, on_update=interrupt)
    assert running.jobs.cancelled == ["steady"]
