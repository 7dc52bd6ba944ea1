"""Calls to workers that die, are crowded, or say no."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.orchestrator.calls import Call, Caller, Patience
from squeezeflow.orchestrator.record import Accepted, Outcome
from squeezeflow.rpc.errors import RETRY_AFTER
from squeezeflow.v1 import pruner_pb2, step_pb2

SERVICE, POD_A, POD_B = "dns:///pruner:7073", "10.0.0.1:7073", "10.0.0.2:7073"
ACTION = "a" * 64
QUICK = Patience(unavailable_seconds=0.3, first_delay=0.001, longest_delay=0.01, overloaded_seconds=0.2)

GONE = SqueezeflowError("WORKER_UNAVAILABLE", "pruner is not there")
RESULT = step_pb2.StepEvent(result=step_pb2.StepResult(action=ACTION))


def accepted(worker: str, **fields: bool) -> step_pb2.StepEvent:
    return step_pb2.StepEvent(accepted=step_pb2.StepAccepted(action=ACTION, worker=worker, **fields))


def progress(fraction: float) -> step_pb2.StepEvent:
    return step_pb2.StepEvent(progress=step_pb2.StepProgress(fraction=fraction, metrics={"loss": fraction}))


class FakeWorkerCalls:
    """Plays what workers answer: a list of events and an exception for every call, by address."""

    def __init__(self, scripts: dict[str, list[list[Any]]], cancel: Exception | None = None) -> None:
        self.scripts = scripts
        self.called: list[str] = []
        self.cancelled: list[str] = []
        self.cancel = cancel

    async def step(
        self, target: str, method: str, request: Message, *, tenant: str, silence_seconds: float
    ) -> AsyncGenerator[step_pb2.StepEvent, None]:
        assert (method, tenant) == ("squeezeflow.v1.Pruner/Prune", "default")
        self.called.append(target)
        script = self.scripts.get(target, [])
        for event in script.pop(0) if script else [GONE]:
            if isinstance(event, Exception):
                raise event
            if event == "hang":
                await asyncio.sleep(3600)
            else:
                yield event

    async def ask(self, target: str, method: str, request: Any, answer: Any, *, tenant: str, timeout: float) -> Any:
        assert (method, request.action) == ("squeezeflow.v1.Steps/CancelStep", ACTION)
        self.cancelled.append(target)
        if self.cancel is not None and target != SERVICE:
            raise self.cancel
        return step_pb2.Step()


class FakeListener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.accepted_: list[tuple[Accepted, bool]] = []
        self.fractions: list[float] = []
        self.ends = False

    async def accepted(self, accepted: Accepted, *, cached: bool) -> None:
        self.accepted_.append((accepted, cached))

    def progressed(self, progress: step_pb2.StepProgress) -> None:
        self.fractions.append(progress.fraction)

    def cancelling(self) -> bool:
        return self.ends


def caller(workers: FakeWorkerCalls, patience: Patience = QUICK) -> Caller:
    any_workers: Any = workers
    return Caller(any_workers, {"pruner": SERVICE}, patience)


def call(known: Accepted | None = None) -> Call:
    return Call("default", "prune-1", "prune", pruner_pb2.PruneRequest(), known)


async def perform(workers: FakeWorkerCalls, known: Accepted | None = None, **options: Any) -> Outcome:
    listener = options.pop("listener", None) or FakeListener()
    return await asyncio.wait_for(caller(workers, **options).perform(call(known), listener), 20)


async def test_a_result_comes_with_who_made_it_and_how_it_went() -> None:
    listener = FakeListener()
    workers = FakeWorkerCalls({SERVICE: [[accepted(POD_A), progress(0.25), progress(0.5), RESULT]]})
    outcome = await perform(workers, listener=listener)
    assert (outcome.error, outcome.worker, outcome.action, outcome.attempts) == (None, POD_A, ACTION, 1)
    assert outcome.result == RESULT.result
    assert listener.fractions == [0.25, 0.5]
    assert outcome.metrics == {"loss": 0.5}
    assert 0 < outcome.started <= outcome.ended
    assert [(a.worker, a.attempts, cached) for a, cached in listener.accepted_] == [(POD_A, 1, False)]


async def test_a_worker_that_was_lost_is_called_again_where_the_step_ran() -> None:
    scripts = {SERVICE: [[accepted(POD_A), progress(0.5), GONE]], POD_A: [[accepted(POD_A, attached=True), RESULT]]}
    workers = FakeWorkerCalls(scripts)
    outcome = await perform(workers)
    assert outcome.error is None
    assert workers.called == [SERVICE, POD_A]
    assert outcome.attempts == 2


async def test_only_when_it_is_gone_another_one_is_called() -> None:
    scripts = {SERVICE: [[accepted(POD_A), GONE], [accepted(POD_B), RESULT]]}
    workers = FakeWorkerCalls(scripts)
    outcome = await perform(workers)
    assert workers.called == [SERVICE, POD_A, SERVICE]
    assert outcome.worker == POD_B


async def test_after_a_restart_the_step_is_looked_for_where_it_ran() -> None:
    known = Accepted(POD_A, ACTION, 2, 1000.0)
    workers = FakeWorkerCalls({POD_A: [[accepted(POD_A, attached=True), RESULT]]})
    outcome = await perform(workers, known)
    assert workers.called == [POD_A]
    assert (outcome.attempts, outcome.started) == (3, 1000.0)


async def test_a_worker_that_comes_back_in_time_is_waited_for() -> None:
    workers = FakeWorkerCalls({SERVICE: [[GONE], [GONE], [GONE], [accepted(POD_A), RESULT]]})
    outcome = await perform(workers)
    assert (outcome.error, outcome.attempts) == (None, 4)


async def test_a_worker_that_never_comes_is_given_up_with_its_address() -> None:
    workers = FakeWorkerCalls({})
    outcome = await perform(workers)
    assert outcome.result is None
    assert outcome.error.reason == "WORKER_UNAVAILABLE"
    assert "pruner is not there" in outcome.error.message
    assert outcome.attempts == len(workers.called) >= 5


async def test_a_step_that_kills_every_worker_is_given_up() -> None:
    patience = Patience(broken_calls=3, first_delay=0.001)
    deadly = [accepted(SERVICE), GONE]
    workers = FakeWorkerCalls({SERVICE: [deadly for _ in range(9)]})
    outcome = await perform(workers, patience=patience)
    assert outcome.error.reason == "WORKER_UNAVAILABLE"
    assert len(workers.called) == 3
    assert "3 workers were lost" in outcome.error.message


async def test_a_crowded_worker_is_called_again_when_it_said_so() -> None:
    crowded = SqueezeflowError("OVERLOADED", "full", metadata={RETRY_AFTER: 0.1})
    workers = FakeWorkerCalls({SERVICE: [[crowded], [accepted(POD_A), RESULT]]})
    assert (await perform(workers)).error is None
    workers = FakeWorkerCalls({SERVICE: [[crowded] for _ in range(99)]})
    assert (await perform(workers)).error.reason == "OVERLOADED"
    assert 2 <= len(workers.called) <= 5


async def test_a_store_that_is_away_for_a_moment_is_tried_again_a_few_times() -> None:
    away = SqueezeflowError("STORE_UNAVAILABLE", "the store does not answer")
    workers = FakeWorkerCalls({SERVICE: [[accepted(SERVICE), away], [accepted(SERVICE), RESULT]]})
    assert (await perform(workers)).error is None
    workers = FakeWorkerCalls({SERVICE: [[accepted(SERVICE), away] for _ in range(99)]})
    assert (await perform(workers)).error.reason == "STORE_UNAVAILABLE"
    assert len(workers.called) == QUICK.store_calls


@pytest.mark.parametrize("reason", ["INVARIANT_BROKEN", "CHILD_CRASHED", "OUT_OF_MEMORY", "TIMED_OUT", "CANCELLED"])
async def test_a_refusal_is_final(reason: str) -> None:
    refusal = SqueezeflowError(reason, "no", metadata={"layer": "dense"})
    workers = FakeWorkerCalls({SERVICE: [[accepted(POD_A), refusal]]})
    outcome = await perform(workers)
    assert (outcome.error.reason, dict(outcome.error.metadata)) == (reason, {"layer": "dense"})
    assert len(workers.called) == 1


async def test_a_stream_that_ends_without_a_result_is_no_result() -> None:
    workers = FakeWorkerCalls({SERVICE: [[accepted(SERVICE)], [accepted(SERVICE), RESULT]]})
    assert (await perform(workers)).attempts == 2


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_cancelled_job_ends_its_step_where_it_runs() -> None:
    workers = FakeWorkerCalls({SERVICE: [[accepted(POD_A), "hang"]]})
    listener = FakeListener()
    task = asyncio.create_task(caller(workers).perform(call(), listener))
    await until(lambda: bool(listener.accepted_))
    listener.ends = True
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert workers.cancelled == [POD_A]


async def test_when_that_worker_is_gone_the_others_are_told() -> None:
    workers = FakeWorkerCalls({SERVICE: [[accepted(POD_A), "hang"]]}, cancel=GONE)
    listener = FakeListener()
    task = asyncio.create_task(caller(workers).perform(call(), listener))
    await until(lambda: bool(listener.accepted_))
    listener.ends = True
    task.cancel()
    await asyncio.wait({task})
    assert workers.cancelled == [POD_A, SERVICE]


async def test_an_orchestrator_that_stops_leaves_the_step_running() -> None:
    workers = FakeWorkerCalls({SERVICE: [[accepted(POD_A), "hang"]]})
    listener = FakeListener()
    task = asyncio.create_task(caller(workers).perform(call(), listener))
    await until(lambda: bool(listener.accepted_))
    task.cancel()
    await asyncio.wait({task})
    assert workers.cancelled == []


async def test_a_step_that_another_job_needs_is_not_ended() -> None:
    workers = FakeWorkerCalls({SERVICE: [[accepted(POD_A), "hang"], [accepted(POD_A), "hang"]]})
    both = caller(workers)
    mine, other = FakeListener(), FakeListener()
    tasks = [asyncio.create_task(both.perform(call(), listener)) for listener in (mine, other)]
    await until(lambda: bool(mine.accepted_ and other.accepted_))
    mine.ends = True
    tasks[0].cancel()
    await asyncio.wait({tasks[0]})
    assert workers.cancelled == []
    other.ends = True
    tasks[1].cancel()
    await asyncio.wait({tasks[1]})
    assert workers.cancelled == [POD_A]
