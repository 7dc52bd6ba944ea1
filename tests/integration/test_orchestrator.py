"""The orchestrator as a process, over real workers whose techniques are fakes: jobs, artifacts, kills and restarts."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.servers.orchestrators import JobsClient, OrchestratorProcess
from tests.servers.processes import free_ports
from tests.servers.workers import Wishes, WorkerProcess, put_file

from squeezeflow.core import recipes as shipped
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.rpc.channels import open_sync_channel
from squeezeflow.rpc.errors import from_rpc_error
from squeezeflow.v1 import artifact_pb2, artifacts_pb2, jobs_pb2

SUCCEEDED, FAILED = jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED
RUNNING, CANCELLED = jobs_pb2.JOB_STATE_RUNNING, jobs_pb2.JOB_STATE_CANCELLED
FINAL = (SUCCEEDED, FAILED, CANCELLED)
ALL_RECIPES = ("dynamic", "int8", "prune", "prune-int8")
KERAS, DATASET = artifact_pb2.ARTIFACT_KIND_KERAS, artifact_pb2.ARTIFACT_KIND_DATASET


class Site:
    """A store, a process of workers, an orchestrator, and what tests ask of them."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.store_url = f"dir:{folder / 'store'}"
        self.wishes = Wishes(folder)
        self._worker_port, self._port = free_ports(2)
        self._environ = environ
        self._models = 0
        self.start_workers()
        self.start()

    def start_workers(self) -> None:
        self.workers = WorkerProcess(self.folder, self.store_url, self._worker_port)

    def start(self) -> None:
        workers = f"127.0.0.1:{self._worker_port}"
        self.orchestrator = OrchestratorProcess(self.folder, self.store_url, self._port, workers, **self._environ)
        self.orchestrator.wait_serving()
        self.client = JobsClient(self.orchestrator.address)

    def revive(self) -> None:
        """Starts again what a test has left dead."""
        if not self.workers.alive():
            self.start_workers()
        if self.orchestrator.process.poll() is not None:
            self.start()

    def stop(self) -> None:
        self.orchestrator.kill()
        self.workers.kill()

    def model(self, tenant: str = "default") -> str:
        """Stores a model that no test before had, so that nothing of it is cached."""
        self._models += 1
        path = self.folder / "model.keras"
        path.write_bytes(b"PK\x03\x04" + os.urandom(16))
        return put_file(self.store_url, tenant, KERAS, path)

    def data(self, **arrays: Any) -> str:
        x, y = np.zeros((8, 4), np.float32), np.zeros(8, np.int64)
        path = self.folder / "data.npz"
        np.savez(path, **(arrays or {"x_train": x, "y_train": y, "x_test": x, "y_test": y}))
        return put_file(self.store_url, "default", DATASET, path)

    def spec(self, *recipes: str, data: bool = True, **fields: Any) -> jobs_pb2.JobSpec:
        named = [shipped.named(name) for name in recipes]
        spec = jobs_pb2.JobSpec(model={"artifact": self.model()}, recipes=named, **fields)
        if data:
            spec.data.artifact = self.data()
        return spec

    def run(self, spec: jobs_pb2.JobSpec) -> jobs_pb2.Job:
        return self.client.watch(self.client.create(spec).id)[-1]


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
    return found


def refused(call: Callable[[], Any]) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        call()
    return caught.value


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("shared"))
    yield site
    site.stop()


@pytest.fixture
def site(shared: Site) -> Site:
    """The site that tests share; wishes and runs of the test before are gone, and both processes are there."""
    for name in ("wishes.json", "runs.txt"):
        (shared.folder / name).unlink(missing_ok=True)
    shared.revive()
    return shared


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Site]:
    """A site whose orchestrator gives workers up after a second."""
    site = Site(tmp_path, SQUEEZEFLOW_WORKER_GONE_SECONDS="1")
    yield site
    site.stop()


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_a_job_makes_and_measures_every_candidate_and_shared_steps_once(site: Site) -> None:
    site.wishes.set(prune={"seconds": 0.5})
    created = site.client.create(site.spec(*ALL_RECIPES))
    states = site.client.watch(created.id)
    job = states[-1]
    assert job.state == SUCCEEDED
    assert [candidate.recipe for candidate in job.candidates] == ["float32", *ALL_RECIPES]
    for candidate in job.candidates:
        assert candidate.state == SUCCEEDED
        assert candidate.artifact
        assert candidate.contract
        assert candidate.sizes.raw_bytes
        names = {"accuracy", "latency_p50_ms"}
        assert names <= set(candidate.metrics)
        assert ("accuracy_drop" in candidate.metrics) == (candidate.recipe != "float32")
    began = site.wishes.began()
    assert {name: began.count(name) for name in set(began)} == {
        "prune": 1, "convert": 2, "quantize": 3, "evaluate": 5, "benchmark": 5,
    }  # fmt: skip
    assert began[-5:] == ["benchmark"] * 5
    fractions = [state.candidates[3].steps[0].fraction for state in states]
    assert any(0 < fraction < 1 for fraction in fractions), "no progress was seen"
    assert site.client.get(created.id) == job


def test_the_document_in_the_store_is_the_job(site: Site) -> None:
    job = site.run(site.spec("dynamic"))
    path = site.folder / "store" / "tenants" / "default" / "jobs" / job.id
    until(lambda: path.exists() and json.loads(path.read_text())["state"] == "JOB_STATE_SUCCEEDED")
    document = json.loads(path.read_text())
    assert document["candidates"][1]["artifact"] == job.candidates[1].artifact


def test_the_same_job_again_is_answered_from_the_records(site: Site) -> None:
    spec = site.spec("dynamic", "prune")
    site.run(spec)
    ran = len(site.wishes.began())
    again = site.run(spec)
    assert site.wishes.began()[ran:] == ["benchmark"] * 3
    cached = {step.technique: step.cached for candidate in again.candidates for step in candidate.steps}
    assert cached == {"convert": True, "quantize": True, "prune": True, "evaluate": True, "benchmark": False}


def test_a_plan_is_shown_and_nothing_started(site: Site) -> None:
    before = len(site.client.list(page_size=1000).jobs)
    planned = site.client.create(site.spec(data=False), validate_only=True)
    assert [candidate.recipe for candidate in planned.candidates] == ["float32", "dynamic"]
    assert [step.technique for step in planned.candidates[1].steps] == ["quantize", "benchmark"]
    assert site.wishes.began() == []
    assert len(site.client.list(page_size=1000).jobs) == before


def test_a_request_id_makes_one_job(site: Site) -> None:
    spec = site.spec("dynamic")
    request = os.urandom(8).hex()
    with ThreadPoolExecutor(4) as pool:
        ids = {job.id for job in pool.map(lambda _: site.client.create(spec, request_id=request), range(4))}
    assert len(ids) == 1


def test_a_failing_candidate_leaves_the_others_alone(site: Site) -> None:
    site.wishes.set(prune={"fail": "UNSUPPORTED_LAYER"})
    job = site.run(site.spec(*ALL_RECIPES))
    assert job.state == SUCCEEDED
    failed = {c.recipe: (c.error.reason, c.error.metadata["layer"]) for c in job.candidates if c.state == FAILED}
    assert failed == {"prune": ("UNSUPPORTED_LAYER", "dense"), "prune-int8": ("UNSUPPORTED_LAYER", "dense")}


def test_a_job_without_the_data_of_its_only_recipe_fails_with_data_missing(site: Site) -> None:
    job = site.run(site.spec("int8", data=False))
    assert (job.state, job.error.reason) == (FAILED, "DATA_MISSING")
    assert job.candidates[0].state == SUCCEEDED
    assert "quantize" not in site.wishes.began()


def test_bad_requests_are_refused_before_anything_is_queued(site: Site) -> None:
    twice = site.spec("dynamic", "dynamic")
    assert refused(lambda: site.client.create(twice)).reason == "INVALID_PARAMETER"
    unknown = site.spec("dynamic")
    unknown.MergeFromString(b"\xf8\x06\x01")
    assert "#111" in refused(lambda: site.client.create(unknown)).fields[0][0]
    too_much = site.spec("prune")
    too_much.recipes[0].techniques[0].prune.sparsity = 1.5
    assert "sparsity" in refused(lambda: site.client.create(too_much)).fields[0][0]
    absent = site.spec("dynamic")
    absent.model.artifact = "0" * 64
    assert refused(lambda: site.client.create(absent)).reason == "NOT_FOUND"
    wrong = site.spec("dynamic")
    wrong.data.artifact = site.data(x_train=np.zeros((8, 5), np.float32))
    assert refused(lambda: site.client.create(wrong)).reason == "DATA_MISMATCH"
    site.wishes.set(describe={"findings": ["Lambda layer payload"]})
    assert refused(lambda: site.client.create(site.spec("dynamic"))).reason == "CODE_IN_MODEL"
    assert site.wishes.began() == []


def test_a_tenant_sees_its_own_jobs_and_artifacts_only(site: Site) -> None:
    job = site.run(site.spec("dynamic"))
    other = JobsClient(site.orchestrator.address, "other")
    assert refused(lambda: other.get(job.id)).reason == "NOT_FOUND"
    assert refused(lambda: other.watch(job.id)).reason == "NOT_FOUND"
    assert refused(lambda: other.cancel(job.id)).reason == "NOT_FOUND"
    assert refused(lambda: other.create(job.spec)).reason == "NOT_FOUND"
    assert not other.list().jobs
    request = artifacts_pb2.GetArtifactRequest(digest=job.candidates[0].artifact)
    assert refused(lambda: other.ask(other.artifacts.GetArtifact, request)).reason == "NOT_FOUND"


def test_jobs_are_listed_the_newest_first(site: Site) -> None:
    ids = [site.client.create(site.spec("dynamic")).id for _ in range(3)]
    page = site.client.list(page_size=2)
    assert [job.id for job in page.jobs] == ids[:0:-1]
    assert site.client.list(page_size=1, page_token=page.next_page_token).jobs[0].id == ids[0]


def test_cancelling_a_job_ends_its_steps_on_their_worker(site: Site) -> None:
    site.wishes.set(prune={"seconds": 600})
    job = site.client.create(site.spec("prune"))
    until(lambda: site.wishes.count("began", "prune"))
    site.client.cancel(job.id)
    assert site.client.watch(job.id)[-1].state == CANCELLED
    until(lambda: site.wishes.count("cancelled", "prune"))
    assert site.client.cancel(job.id).state == CANCELLED


def test_a_step_that_another_job_needs_survives_the_cancellation(site: Site) -> None:
    site.wishes.set(prune={"seconds": 600})
    spec = site.spec("prune")
    mine, other = site.client.create(spec), site.client.create(spec)
    for job in (mine, other):
        until(lambda job=job: site.client.get(job.id).candidates[1].steps[0].worker)
    site.client.cancel(mine.id)
    assert site.client.watch(mine.id)[-1].state == CANCELLED
    site.wishes.set()
    assert site.client.watch(other.id)[-1].state == SUCCEEDED
    assert (site.wishes.count("began", "prune"), site.wishes.count("cancelled", "prune")) == (1, 0)


# --- artifacts ------------------------------------------------------------------------------------------------------


def uploads(data: bytes, **fields: Any) -> Iterator[artifacts_pb2.WriteArtifactRequest]:
    values = {"kind": KERAS, "size_bytes": len(data), "digest": hashlib.sha256(data).hexdigest(), **fields}
    yield artifacts_pb2.WriteArtifactRequest(header=artifacts_pb2.WriteArtifactHeader(**values))
    for start in range(0, len(data), 1 << 20):
        yield artifacts_pb2.WriteArtifactRequest(chunk=data[start : start + (1 << 20)])


def download(client: JobsClient, digest: str) -> bytes:
    request = artifacts_pb2.ReadArtifactRequest(digest=digest)
    stream = client.artifacts.ReadArtifact(request, metadata=client.metadata, timeout=60)
    return b"".join(response.chunk for response in stream)


def test_artifacts_go_in_and_come_out_and_are_listed(site: Site) -> None:
    client = JobsClient(site.orchestrator.address, "uploads")
    contents = [os.urandom(size) for size in (10, 3 << 20)]
    stored = [client.ask(client.artifacts.WriteArtifact, uploads(data)) for data in contents]
    assert [download(client, artifact.digest) for artifact in stored] == contents
    listed = client.ask(client.artifacts.ListArtifacts, artifacts_pb2.ListArtifactsRequest())
    assert sorted(a.digest for a in listed.artifacts) == sorted(a.digest for a in stored)


def test_an_upload_that_is_not_what_it_said_is_refused(site: Site) -> None:
    data = os.urandom(2 << 20)
    write = site.client.artifacts.WriteArtifact
    lie = refused(lambda: site.client.ask(write, uploads(data, digest="0" * 64)))
    assert lie.reason == "DIGEST_MISMATCH"
    request = artifacts_pb2.GetArtifactRequest(digest="0" * 64)
    assert refused(lambda: site.client.ask(site.client.artifacts.GetArtifact, request)).reason == "NOT_FOUND"


def test_a_client_that_breaks_off_its_upload_leaves_nothing(site: Site) -> None:
    data = os.urandom(4 << 20)

    def breaking() -> Iterator[artifacts_pb2.WriteArtifactRequest]:
        messages = uploads(data)
        for _ in range(3):
            yield next(messages)
        time.sleep(3600)

    call = site.client.artifacts.WriteArtifact.future(breaking(), metadata=site.client.metadata)
    scratch = site.folder / "orchestrator" / "scratch"
    until(lambda: scratch.exists() and any(scratch.iterdir()))
    call.cancel()
    until(lambda: not any(scratch.iterdir()))
    digest = hashlib.sha256(data).hexdigest()
    request = artifacts_pb2.GetArtifactRequest(digest=digest)
    assert refused(lambda: site.client.ask(site.client.artifacts.GetArtifact, request)).reason == "NOT_FOUND"


def test_where_a_file_came_from_is_told(site: Site) -> None:
    job = site.run(site.spec("prune"))
    request = artifacts_pb2.GetLineageRequest(digest=job.candidates[1].artifact)
    lineage = site.client.ask(site.client.artifacts.GetLineage, request)
    assert [action.technique for action in lineage.actions] == ["convert", "prune"]
    unknown = artifacts_pb2.GetLineageRequest(digest="0" * 64)
    assert refused(lambda: site.client.ask(site.client.artifacts.GetLineage, unknown)).reason == "NOT_FOUND"


def test_both_services_are_serving(site: Site) -> None:
    with open_sync_channel(site.orchestrator.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("squeezeflow.v1.Jobs", "squeezeflow.v1.Artifacts"):
            status = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status
            assert status == health_pb2.HealthCheckResponse.SERVING


# --- kills and restarts ---------------------------------------------------------------------------------------------


def test_a_second_orchestrator_on_the_same_database_says_so_and_ends(site: Site) -> None:
    (port,) = free_ports(1)
    second = OrchestratorProcess(site.folder, site.store_url, port, "127.0.0.1:1")
    assert second.process.wait(60) == 2
    assert "another orchestrator" in second.log()


def test_an_orchestrator_that_was_killed_goes_on_and_does_nothing_twice(site: Site) -> None:
    site.wishes.set(prune={"seconds": 600})
    job = site.client.create(site.spec(*ALL_RECIPES))
    until(lambda: site.wishes.count("ended", "evaluate") == 3)  # all but what waits for the training
    until(lambda: sum(c.metrics["accuracy"].value > 0 for c in site.client.get(job.id).candidates) == 3)
    site.orchestrator.kill()
    site.start()
    shown = site.client.get(job.id)
    assert shown.state == RUNNING
    assert [bool(candidate.artifact) for candidate in shown.candidates] == [True, True, True, False, False]
    site.wishes.set()
    ended = site.client.watch(job.id)[-1]
    assert ended.state == SUCCEEDED, ended
    began = site.wishes.began()
    assert {name: began.count(name) for name in set(began)} == {
        "prune": 1, "convert": 2, "quantize": 3, "evaluate": 5, "benchmark": 5,
    }  # fmt: skip
    assert ended.candidates[3].steps[0].attempts == 2
    assert site.wishes.count("cancelled") == 0


def test_an_orchestrator_that_was_told_to_stop_goes_on_at_its_next_start(site: Site) -> None:
    site.wishes.set(prune={"seconds": 600})
    job = site.client.create(site.spec("prune"))
    until(lambda: site.wishes.count("began", "prune"))
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(site.client.watch, job.id)
        time.sleep(0.2)
        assert site.orchestrator.terminate() == 0
        assert refused(watching.result).reason == "WORKER_UNAVAILABLE"
    assert site.wishes.count("cancelled") == 0
    site.wishes.set()
    site.start()
    assert site.client.watch(job.id)[-1].state == SUCCEEDED
    assert site.wishes.count("began", "prune") == 1


def test_a_worker_that_was_killed_in_the_middle_of_a_step_is_called_again(site: Site) -> None:
    site.wishes.set(prune={"seconds": 600})
    job = site.client.create(site.spec("prune"))
    until(lambda: site.wishes.count("began", "prune"))
    site.workers.kill()
    site.wishes.set()
    time.sleep(0.5)
    site.start_workers()
    ended = site.client.watch(job.id)[-1]
    assert ended.state == SUCCEEDED, ended
    assert site.wishes.count("began", "prune") == 2
    assert ended.candidates[1].steps[0].attempts > 1


def test_a_worker_that_is_not_there_is_told_with_its_address(impatient: Site) -> None:
    impatient.wishes.set(prune={"seconds": 600})
    job = impatient.client.create(impatient.spec("prune"))
    until(lambda: impatient.wishes.count("began", "prune"))
    impatient.workers.kill()
    ended = impatient.client.watch(job.id)[-1]
    assert (ended.state, ended.error.reason) == (FAILED, "WORKER_UNAVAILABLE")
    assert "127.0.0.1:" in ended.error.message
    error = refused(lambda: impatient.client.create(impatient.spec("dynamic")))
    assert error.reason == "WORKER_UNAVAILABLE"
    assert "127.0.0.1:" in error.message


def test_a_job_cancelled_right_after_a_restart_is_cancelled(site: Site) -> None:
    site.wishes.set(prune={"seconds": 600})
    job = site.client.create(site.spec("prune"))
    until(lambda: site.wishes.count("began", "prune"))
    site.orchestrator.kill()
    site.start()
    site.client.cancel(job.id)
    assert site.client.watch(job.id)[-1].state == CANCELLED
    assert site.client.get(job.id).state == CANCELLED


def test_gone_is_gone_for_raw_grpc_callers_too(site: Site) -> None:
    request = artifacts_pb2.ReadArtifactRequest(digest="0" * 64)
    with pytest.raises(grpc.RpcError) as caught:
        list(site.client.artifacts.ReadArtifact(request, metadata=site.client.metadata, timeout=20))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert from_rpc_error(caught.value, "x").reason == "NOT_FOUND"
