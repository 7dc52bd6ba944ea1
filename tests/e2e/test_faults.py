"""Real processes killed and a real store restarted in the middle of real jobs: nothing hangs, leaks or vanishes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.servers.seaweedfs import SeaweedServer
from tests.servers.stack import Stack

from squeezeflow.client import Client
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import open_store
from squeezeflow.v1 import jobs_pb2, technique_pb2

TRAINING = technique_pb2.FineTune(epochs=12, batch_size=16)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    server = SeaweedServer(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def shaken(tmp_path_factory: pytest.TempPathFactory, s3: SeaweedServer) -> Iterator[Stack]:
    """A stack of its own, on S3, that these tests may kill parts of."""
    often = {"SQUEEZEFLOW_CHECKPOINT_SECONDS": "0.1"}
    with Stack(tmp_path_factory.mktemp("shaken"), store=s3.url, **often) as running:
        yield running


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.1)


def start(client: Client, model: Path, data: Path, seed: int) -> jobs_pb2.Job:
    """Starts a job with a training step; the seed makes it one that was not run before."""
    prune = technique_pb2.Technique(prune={"fine_tune": TRAINING})
    prune.prune.fine_tune.seed = seed
    recipe = jobs_pb2.Recipe(name="prune", techniques=[prune, technique_pb2.Technique(convert={})])
    spec = jobs_pb2.JobSpec(recipes=[recipe])
    spec.model.artifact = client.upload(model).digest
    spec.data.artifact = client.upload(data).digest
    spec.data.scale.append(1 / 255)
    return client.create_job(spec)


def step(job: jobs_pb2.Job, technique: str) -> jobs_pb2.CandidateStep:
    (candidate,) = (candidate for candidate in job.candidates if candidate.recipe == "prune")
    return next(step for step in candidate.steps if step.technique == technique)


def wait_for_training(client: Client, job_id: str) -> jobs_pb2.Job:
    """Gives the job once its model is being trained."""
    until(lambda: step(client.get_job(job_id), "prune").stage == "training", 90, "training")
    return client.get_job(job_id)


def final(client: Client, job_id: str) -> jobs_pb2.Job:
    """Waits for the end over polls, so that a restarting orchestrator is no error of the test."""
    ended: list[jobs_pb2.Job] = []

    def has_ended() -> bool:
        try:
            job = client.get_job(job_id)
        except SqueezeflowError as error:
            if error.reason not in ("WORKER_UNAVAILABLE", "STORE_UNAVAILABLE", "TIMED_OUT"):
                raise
            return False
        if job.state in (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED):
            ended.append(job)
        return bool(ended)

    until(has_ended, 240, "the end of the job")
    return ended[0]


def checkpoints(s3: SeaweedServer) -> list[str]:
    """Gives the actions that have a checkpoint."""
    prefix = "tenants/default/checkpoints/"
    return [key.removeprefix(prefix) for key in open_store(s3.url).list(prefix)]


def trainings(stack: Stack, action: str) -> int:
    """Counts how often the pruner finished this action."""
    return stack.log_of("pruner").count(f"prune {action[:12]} done")


def test_a_worker_killed_in_the_middle_of_training_is_called_again(
    shaken: Stack, s3: SeaweedServer, cnn: Path, few_images: Path
) -> None:
    client = shaken.client()
    job = wait_for_training(client, start(client, cnn, few_images, seed=1).id)
    until(lambda: bool(checkpoints(s3)), 30, "a checkpoint")
    victim = psutil.Process(shaken.pid_of("pruner"))
    family = victim.children(recursive=True)
    victim.kill()
    until(lambda: not any(child.is_running() for child in family), 5, "the end of the killed service's children")
    job = final(client, job.id)
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
    assert step(job, "prune").attempts > 1
    assert trainings(shaken, step(job, "prune").action) == 1
    assert f"{step(job, 'prune').action[:12]} goes on from a checkpoint" in shaken.log_of("pruner")
    until(lambda: not checkpoints(s3), 10, "the end of the checkpoint")


def test_an_orchestrator_killed_in_the_middle_of_a_job_ends_it_without_doing_anything_twice(
    shaken: Stack, cnn: Path, few_images: Path
) -> None:
    client = shaken.client()
    job = wait_for_training(client, start(client, cnn, few_images, seed=2).id)
    os.kill(shaken.pid_of("orchestrator"), signal.SIGKILL)
    job = final(client, job.id)
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
    assert trainings(shaken, step(job, "prune").action) == 1


def test_a_store_that_is_restarted_in_the_middle_of_a_job_does_not_lose_it(
    shaken: Stack, s3: SeaweedServer, cnn: Path, few_images: Path
) -> None:
    client = shaken.client()
    job = wait_for_training(client, start(client, cnn, few_images, seed=3).id)
    s3.kill()
    s3.start()
    job = final(client, job.id)
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error


def test_a_store_that_is_down_is_told_and_comes_back(
    shaken: Stack, s3: SeaweedServer, cnn: Path, tmp_path: Path
) -> None:
    client = shaken.client()
    copy = tmp_path / "new.keras"
    copy.write_bytes(cnn.read_bytes() + b"\0")
    s3.kill()
    try:
        with pytest.raises(SqueezeflowError) as caught:
            client.upload(copy)
        assert caught.value.reason == "STORE_UNAVAILABLE"
    finally:
        s3.start()
    until(lambda: bool(_uploaded(client, copy)), 60, "the store's return")


def _uploaded(client: Client, path: Path) -> str:
    try:
        return client.upload(path).digest
    except SqueezeflowError as error:
        if error.reason != "STORE_UNAVAILABLE":
            raise
        return ""


def test_cancel_ends_the_job_and_its_training(shaken: Stack, s3: SeaweedServer, cnn: Path, few_images: Path) -> None:
    client = shaken.client()
    job = wait_for_training(client, start(client, cnn, few_images, seed=4).id)
    until(lambda: bool(checkpoints(s3)), 30, "a checkpoint")
    client.cancel_job(job.id)
    job = final(client, job.id)
    assert job.state == jobs_pb2.JOB_STATE_CANCELLED
    until(lambda: not checkpoints(s3), 10, "the end of the checkpoint")
    time.sleep(1)
    assert trainings(shaken, step(job, "prune").action) == 0


def test_a_worker_that_never_comes_back_is_named(cnn: Path, tmp_path: Path) -> None:
    client = Client("127.0.0.1:9", timeout=5)
    with pytest.raises(SqueezeflowError) as caught:
        client.upload(cnn)
    assert caught.value.reason == "WORKER_UNAVAILABLE"
    assert "127.0.0.1:9" in caught.value.message


def test_killing_up_leaves_no_process_behind(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        family = psutil.Process(stack.process.pid).children(recursive=True)
        assert len(family) >= 5
        stack.process.kill()
        # Whoever starts us may reap late: what is dead but not reaped counts as gone.
        until(lambda: not any(_alive(process) for process in family), 10, "the end of every service")


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_twenty_jobs_at_once_share_their_steps_and_all_end(shaken: Stack, cnn: Path) -> None:
    client = shaken.client()
    states: list[int] = []
    threads = [
        threading.Thread(target=lambda: states.append(client.compress(cnn, recipes=["dynamic"]).state))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert states == [jobs_pb2.JOB_STATE_SUCCEEDED] * 20
