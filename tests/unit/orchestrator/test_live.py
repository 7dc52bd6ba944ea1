"""A job that runs, and those who watch it."""

from __future__ import annotations

import asyncio

from tests.unit.orchestrator.builders import failed, nodes_of, record_of, succeeded

from squeezeflow.orchestrator.engine import Run, RunState
from squeezeflow.orchestrator.live import LiveJob
from squeezeflow.orchestrator.record import Accepted
from squeezeflow.orchestrator.report import CANCELLED, FAILED, RUNNING, SUCCEEDED, Ending
from squeezeflow.v1 import jobs_pb2, step_pb2


def end_all(live: LiveJob) -> None:
    for node in live.record.plan.nodes:
        live.ended(node.id, succeeded(node.id))


async def test_a_watcher_sees_the_job_as_it_is_then_changes_then_the_end() -> None:
    live = LiveJob(record_of("dynamic"))
    node = live.record.plan.nodes[0].id
    seen: list[jobs_pb2.Job] = []

    async def watch() -> None:
        async for job in live.watch(0.0):
            seen.append(job)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    assert len(seen) == 1
    live.called(node)
    await asyncio.sleep(0.01)
    assert seen[-1].state == RUNNING
    end_all(live)
    await asyncio.wait_for(watching, 5)
    assert seen[-1].state == SUCCEEDED


async def test_a_watcher_gets_no_more_than_it_asked_for_and_the_end_at_once() -> None:
    live = LiveJob(record_of("dynamic"))
    node = live.record.plan.nodes[0].id
    seen: list[jobs_pb2.Job] = []

    async def watch() -> None:
        async for job in live.watch(3600.0):
            seen.append(job)

    watching = asyncio.create_task(watch())
    for index in range(50):
        live.progressed(node, step_pb2.StepProgress(fraction=index / 50))
        await asyncio.sleep(0)
    end_all(live)
    await asyncio.wait_for(watching, 5)
    assert len(seen) == 2


async def test_who_watches_a_job_that_has_ended_gets_it_once() -> None:
    live = LiveJob(record_of("dynamic"))
    end_all(live)
    assert [job.state async for job in live.watch(1.0)] == [SUCCEEDED]


async def test_a_job_that_has_ended_cannot_be_ended_otherwise() -> None:
    live = LiveJob(record_of("dynamic"))
    end_all(live)
    live.end(Ending(cancelling=True, ended=2000.0))
    assert live.job().state == SUCCEEDED


async def test_a_restored_job_shows_what_was_known_of_it() -> None:
    record = record_of("dynamic", "prune")
    (prune,) = nodes_of(record.plan, "prune")
    final = record.plan.candidates[0].final
    accepted = Accepted("w:2", "b" * 64, 1, 1001.0)
    run = Run(
        id=record.key,
        state=RunState.RUNNING,
        payload=record.to_json(),
        results={final: succeeded(final).to_json()},
        notes={prune: accepted.to_json(), final: accepted.to_json()},
    )
    live = LiveJob.restored(run)
    job = live.job()
    assert job.state == RUNNING
    assert job.candidates[0].artifact
    assert live.step(prune).accepted == accepted


async def test_a_restored_job_knows_what_was_skipped() -> None:
    record = record_of("prune")
    (prune,) = nodes_of(record.plan, "prune")
    results = {
        node.id: succeeded(node.id).to_json()
        for node in record.plan.nodes
        if node.id in record.plan.candidates[0].steps
    }
    results[prune] = failed().to_json()
    live = LiveJob.restored(Run(record.key, RunState.ENDED, record.to_json(), results))
    assert live.job().state == FAILED


async def test_a_cancelled_job_has_ended() -> None:
    live = LiveJob(record_of("dynamic"))
    live.end(Ending(cancelling=True))
    assert not live.final
    live.end(Ending(cancelling=True, ended=2000.0))
    assert live.final
    assert live.job().state == CANCELLED
