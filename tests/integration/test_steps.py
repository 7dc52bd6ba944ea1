"""The step protocol over a real server, a real store and real children."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.config import load
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import Sandbox
from squeezeflow.core.store import Store, open_store
from squeezeflow.rpc.channels import open_channel
from squeezeflow.rpc.errors import from_rpc_error
from squeezeflow.rpc.server import Mount, Server
from squeezeflow.rpc.steps import StepRunner, technique_call
from squeezeflow.rpc.steps_service import steps_mount
from squeezeflow.rpc.tenant import tenant_metadata
from squeezeflow.v1 import artifact_pb2, pruner_pb2, pruner_pb2_grpc, step_pb2, step_pb2_grpc

TOY = Path(__file__).parent / "toy"


class ToyPruner(pruner_pb2_grpc.PrunerServicer):
    """Serves the toy technique under the Pruner's rpc."""

    def __init__(self, runner: StepRunner) -> None:
        self.runner = runner

    async def Prune(self, request: pruner_pb2.PruneRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        async for event in self.runner.stream(technique_call("prune", "toy_technique:run", request)):
            yield event


class Bench:
    """A running worker and what tests do with it."""

    def __init__(self, store: Store, address: str, folder: Path) -> None:
        self.artifacts = Artifacts(store, "default")
        self.store = store
        self.address = address
        self.folder = folder
        self.channel = open_channel(address)
        self.pruner = pruner_pb2_grpc.PrunerStub(self.channel)
        self.steps = step_pb2_grpc.StepsStub(self.channel)

    def model(self, **wish: Any) -> str:
        path = self.folder / "wish.tflite"
        path.write_bytes(json.dumps(wish).encode())
        return self.artifacts.write(artifact_pb2.ARTIFACT_KIND_TFLITE, path).digest

    def call(self, digest: str, *, sparsity: float = 0.5, tenant: str = "default") -> Any:
        request = pruner_pb2.PruneRequest(model={"artifact": digest}, params={"sparsity": sparsity})
        return self.pruner.Prune(request, metadata=tenant_metadata(tenant), timeout=60)

    async def events(self, digest: str, **options: Any) -> list[step_pb2.StepEvent]:
        try:
            return [event async for event in self.call(digest, **options)]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, "toy") from error

    async def failure(self, digest: str, **options: Any) -> SqueezeflowError:
        with pytest.raises(SqueezeflowError) as caught:
            await self.events(digest, **options)
        return caught.value

    async def until(self, condition: Any, seconds: float = 15) -> None:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.02)

    async def running(self) -> list[step_pb2.Step]:
        steps = (await self.steps.ListSteps(step_pb2.ListStepsRequest())).steps
        return [step for step in steps if not step.HasField("end_time")]


@pytest.fixture
async def bench(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    (tmp_path / "store").mkdir()
    config = load("pruner", {"SQUEEZEFLOW_STORE": f"dir:{tmp_path / 'store'}", "SQUEEZEFLOW_LISTEN": "127.0.0.1:0"})
    config = replace(config, workdir=tmp_path / "work", shutdown_seconds=1.0, **getattr(request, "param", {}))
    store = open_store(config.store_url)
    async with Sandbox(preload=["toy_technique"], env={"PYTHONPATH": str(TOY)}) as sandbox:
        runner = StepRunner(config, store, sandbox, {"toy": "1"})
        toy = Mount("squeezeflow.v1.Pruner", pruner_pb2_grpc.add_PrunerServicer_to_server, ToyPruner(runner))
        async with Server(config, [toy, steps_mount(runner)]) as server:
            runner.bound(server.address)
            await server.set_serving(True)
            bench = Bench(store, server.address, tmp_path)
            yield bench
            await bench.channel.close()
            await runner.close()
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir()), "a step left its folder"


def result_of(events: list[step_pb2.StepEvent]) -> step_pb2.StepResult:
    assert events[0].WhichOneof("event") == "accepted"
    assert events[-1].WhichOneof("event") == "result"
    return events[-1].result


def runs(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


async def test_a_step_streams_accepted_progress_and_a_result_with_everything_in_it(bench: Bench) -> None:
    events = await bench.events(bench.model(seconds=0.3))
    result = result_of(events)
    assert events[0].accepted.worker == bench.address
    assert not events[0].accepted.cached
    losses = [event.progress.metrics["loss"] for event in events if event.progress.stage == "training"]
    assert losses == sorted(losses, reverse=True)
    assert (
        bench.artifacts.stat(result.artifact.digest).size_bytes == result.artifact.size_bytes == result.sizes.raw_bytes
    )
    assert bench.artifacts.stat(result.contract).kind == artifact_pb2.ARTIFACT_KIND_CONTRACT
    assert result.invariants[0].passed
    assert result.action == events[0].accepted.action
    assert {"queue", "fetch", "run", "child", "store"} <= set(result.seconds)
    assert result.peak_memory_mib > 1


async def test_the_same_call_again_is_answered_from_the_record_and_runs_nothing(bench: Bench) -> None:
    count = bench.folder / "count"
    digest = bench.model(count=str(count))
    first = result_of(await bench.events(digest))
    events = await bench.events(digest)
    assert runs(count) == 1
    assert events[0].accepted.cached
    assert result_of(events).cached
    assert result_of(events).artifact.digest == first.artifact.digest


async def test_a_default_that_is_spelled_out_is_the_same_action(bench: Bench) -> None:
    count = bench.folder / "count"
    digest = bench.model(count=str(count))
    implicit = pruner_pb2.PruneRequest(model={"artifact": digest})
    explicit = pruner_pb2.PruneRequest(model={"artifact": digest}, params={"sparsity": 0.8, "power": 3.0})
    actions = [(await anext(aiter(bench.pruner.Prune(request)))).accepted.action for request in (implicit, explicit)]
    assert actions[0] == actions[1]
    assert await bench.events(digest, sparsity=0.8)
    assert runs(count) == 1


async def test_two_callers_of_one_action_share_one_execution(bench: Bench) -> None:
    count = bench.folder / "count"
    digest = bench.model(count=str(count), seconds=0.5)
    one, two = await asyncio.gather(bench.events(digest), bench.events(digest))
    assert runs(count) == 1
    assert result_of(one) == result_of(two)
    assert one[0].accepted.attached != two[0].accepted.attached


async def test_a_caller_that_comes_back_finds_the_step_still_running(bench: Bench) -> None:
    count = bench.folder / "count"
    digest = bench.model(count=str(count), seconds=1.0)
    call = bench.call(digest)
    await anext(aiter(call))
    await bench.until(lambda: _has_run(count))
    call.cancel()
    events = await bench.events(digest)
    assert events[0].accepted.attached
    assert result_of(events)
    assert runs(count) == 1


async def _has_run(count: Path) -> bool:
    return runs(count) == 1


@pytest.mark.parametrize("bench", [{"linger_seconds": 0.2}], indirect=True)
async def test_a_step_that_nobody_watches_ends_after_the_linger_time(bench: Bench) -> None:
    digest = bench.model(seconds=60)
    call = bench.call(digest)
    await anext(aiter(call))
    call.cancel()

    async def ended() -> bool:
        steps = (await bench.steps.ListSteps(step_pb2.ListStepsRequest())).steps
        return [step.state for step in steps] == [step_pb2.STEP_STATE_CANCELLED]

    await bench.until(ended)


async def test_cancel_ends_the_step_for_everybody_at_once(bench: Bench) -> None:
    call = bench.call(bench.model(seconds=60))
    accepted = (await anext(aiter(call))).accepted
    watching = bench.steps.WatchStep(step_pb2.WatchStepRequest(action=accepted.action), timeout=60)
    assert (await anext(aiter(watching))).accepted.attached
    await bench.steps.CancelStep(step_pb2.CancelStepRequest(action=accepted.action))
    for stream in (call, watching):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stream:
                pass
        assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert await bench.running() == []


async def test_another_tenant_sees_neither_the_artifact_nor_the_step(bench: Bench) -> None:
    digest = bench.model(seconds=2)
    running = asyncio.create_task(bench.events(digest))
    await bench.until(bench.running)
    action = (await bench.running())[0].action
    assert (await bench.failure(digest, tenant="other")).reason == "NOT_FOUND"
    request = step_pb2.ListStepsRequest()
    listed = await bench.steps.ListSteps(request, metadata=tenant_metadata("other"))
    assert {step.state for step in listed.steps} <= {step_pb2.STEP_STATE_FAILED}
    cancel = step_pb2.CancelStepRequest(action=action)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.steps.CancelStep(cancel, metadata=tenant_metadata("other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert result_of(await running)


async def test_a_typed_refusal_of_the_technique_reaches_the_caller_whole(bench: Bench) -> None:
    error = await bench.failure(bench.model(**{"raise": "UNSUPPORTED_LAYER"}))
    assert (error.reason, error.message, error.metadata["layer"]) == ("UNSUPPORTED_LAYER", "as the model asked", "conv")


async def test_a_child_that_dies_is_told_with_signal_and_last_words_and_the_worker_lives(bench: Bench) -> None:
    error = await bench.failure(bench.model(crash=True))
    assert error.reason == "CHILD_CRASHED"
    assert error.metadata["signal"] == "SIGSEGV"
    assert "about to die" in error.metadata["log"]
    assert result_of(await bench.events(bench.model()))


@pytest.mark.parametrize("bench", [{"step_memory_mib": 400}], indirect=True)
async def test_a_child_that_eats_all_memory_is_ended(bench: Bench) -> None:
    assert (await bench.failure(bench.model(eat=2048))).reason == "OUT_OF_MEMORY"


@pytest.mark.parametrize("bench", [{"step_wall_seconds": 0.5}], indirect=True)
async def test_a_child_that_hangs_is_ended(bench: Bench) -> None:
    assert (await bench.failure(bench.model(seconds=600))).reason == "TIMED_OUT"


@pytest.mark.parametrize("bench", [{"max_concurrent_steps": 1, "max_queued_steps": 1}], indirect=True)
async def test_what_does_not_fit_into_the_queue_is_refused_with_a_time_to_retry(bench: Bench) -> None:
    digests = [bench.model(seconds=0.8, number=number) for number in range(3)]
    calls = [asyncio.create_task(bench.events(digest)) for digest in digests[:2]]

    async def both() -> bool:
        return {step.state for step in await bench.running()} == {
            step_pb2.STEP_STATE_QUEUED,
            step_pb2.STEP_STATE_RUNNING,
        }

    await bench.until(both)
    error = await bench.failure(digests[2])
    assert error.reason == "OVERLOADED"
    assert float(error.metadata["retry_after_seconds"]) > 0
    assert all(result_of(events) for events in await asyncio.gather(*calls))


async def test_a_flipped_bit_in_a_stored_input_is_a_digest_mismatch(bench: Bench) -> None:
    digest = bench.model(number=1)
    (blob,) = [path for path in (bench.folder / "store").rglob(digest) if path.parent.name == "blobs"]
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[3] ^= 1
    blob.write_bytes(data)
    assert (await bench.failure(digest)).reason == "DIGEST_MISMATCH"


async def test_an_unknown_digest_is_not_found(bench: Bench) -> None:
    assert (await bench.failure("0" * 64)).reason == "NOT_FOUND"


async def test_a_field_from_the_future_is_refused_before_anything_runs(bench: Bench) -> None:
    request = pruner_pb2.PruneRequest(model={"artifact": bench.model()})
    request.params.MergeFromString(b"\xd2\x3e\x03new")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in bench.pruner.Prune(request):
            pass
    error = from_rpc_error(caught.value, "toy")
    assert error.reason == "INVALID_PARAMETER"
    assert error.fields[0][0] == "params.#1002"


async def test_health_and_reflection_are_served_without_a_tenant(bench: Bench) -> None:
    health = health_pb2_grpc.HealthStub(bench.channel)
    for name in ("", "squeezeflow.v1.Pruner", "squeezeflow.v1.Steps", "live"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(bench.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in reflection.ServerReflectionInfo(iter([asked])):
        names = {service.name for service in answer.list_services_response.service}
    assert {"squeezeflow.v1.Pruner", "squeezeflow.v1.Steps", "grpc.health.v1.Health"} <= names


async def test_a_malformed_tenant_is_refused(bench: Bench) -> None:
    error = await bench.failure(bench.model(), tenant="../other")
    assert error.reason == "INVALID_PARAMETER"
    assert error.fields[0][0] == "squeezeflow-tenant"


async def test_kill_9_of_a_child_is_a_crash_and_not_a_hang(bench: Bench) -> None:
    count = bench.folder / "count"
    failing = asyncio.create_task(bench.failure(bench.model(count=str(count), seconds=60)))
    await bench.until(lambda: _has_run(count))
    os.kill(int(count.read_text()), signal.SIGKILL)
    assert (await failing).reason == "CHILD_CRASHED"


def kept(bench: Bench) -> list[str]:
    """Gives the actions that have a checkpoint."""
    prefix = "tenants/default/checkpoints/"
    return [key.removeprefix(prefix) for key in bench.store.list(prefix)]


async def state_of(bench: Bench, action: str) -> bytes:
    keys = kept(bench)
    return bench.store.get_bytes(f"tenants/default/checkpoints/{action}") if action in keys else b""


async def test_a_step_that_crashed_goes_on_from_the_newest_state_of_its_child(bench: Bench) -> None:
    digest = bench.model(states=["epoch 1", "epoch 2"], seconds=0.5, crash=True, once=True)
    call = bench.call(digest)
    action = (await anext(aiter(call))).accepted.action
    await bench.until(lambda: _has_state(bench, action, b"epoch 2"))
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    result = result_of(await bench.events(digest))
    assert list(result.notes) == ["toy", "resumed from epoch 2"]
    assert result.action == action
    assert kept(bench) == []


async def _has_state(bench: Bench, action: str, state: bytes) -> bool:
    return await state_of(bench, action) == state


async def test_results_and_refusals_leave_no_checkpoint(bench: Bench) -> None:
    seen = []
    for wish in ({}, {"raise": "NON_FINITE_OUTPUT"}):
        call = bench.call(bench.model(states=["epoch 1"], seconds=0.5, **wish))
        action = (await anext(aiter(call))).accepted.action
        await bench.until(lambda action=action: _has_state(bench, action, b"epoch 1"))
        try:
            seen.append([event.WhichOneof("event") async for event in call][-1])
        except grpc.aio.AioRpcError as error:
            seen.append(from_rpc_error(error, "toy").reason)
        assert kept(bench) == []
    assert seen == ["result", "NON_FINITE_OUTPUT"]


@pytest.mark.parametrize("bench", [{"linger_seconds": 0.2}], indirect=True)
async def test_a_cancelled_step_loses_its_checkpoint_and_an_abandoned_one_does_not(bench: Bench) -> None:
    actions = []
    for number in range(2):
        call = bench.call(bench.model(states=["epoch 1"], seconds=60, number=number))
        action = (await anext(aiter(call))).accepted.action
        actions.append(action)
        await bench.until(lambda action=action: _has_state(bench, action, b"epoch 1"))
        if number == 0:
            await bench.steps.CancelStep(step_pb2.CancelStepRequest(action=action))
        call.cancel()
        await bench.until(lambda: _none_runs(bench))
    assert kept(bench) == actions[1:]


async def _none_runs(bench: Bench) -> bool:
    return not await bench.running()
