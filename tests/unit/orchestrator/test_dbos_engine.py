"""The engine port, kept by DBOS on SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.orchestrator.dbos_engine import DbosEngine
from squeezeflow.orchestrator.engine import Durable, Run, RunCancelled, RunState
from squeezeflow.orchestrator.record import Json


class Body:
    """A body of a few steps at the same time; each waits for its turn."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.interrupted: list[str] = []
        self.let_go: dict[str, asyncio.Event] = {}

    def gate(self, name: str) -> asyncio.Event:
        return self.let_go.setdefault(name, asyncio.Event())

    async def run(self, durable: Durable, payload: Json) -> Json:
        names = payload["steps"]
        slots = {name: durable.reserve(name) for name in names}

        async def step(name: str) -> Json:
            async def work() -> Json:
                await durable.note(name, {"worker": f"at {name}"})
                self.began.append(name)
                try:
                    await self.gate(name).wait()
                except asyncio.CancelledError:
                    self.interrupted.append(name)
                    raise
                return {"made": name}

            return await slots[name].run(work)

        results = await asyncio.gather(*(asyncio.create_task(step(name)) for name in names))
        return {"results": results}


async def until_state(engine: DbosEngine, run: str, state: RunState) -> Run:
    async with asyncio.timeout(20):
        while True:
            found = await engine.get(run)
            if found is not None and found.state is state:
                return found
            await asyncio.sleep(0.01)


async def until_began(body: Body, *names: str) -> None:
    async with asyncio.timeout(20):
        while not set(names) <= set(body.began):
            await asyncio.sleep(0.01)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[DbosEngine]:
    engine = DbosEngine(tmp_path / "state" / "jobs.sqlite", "test")
    yield engine
    await engine.close()


async def test_a_run_ends_and_is_kept_with_its_results(engine: DbosEngine) -> None:
    body = Body()
    await engine.start(body.run)
    await engine.submit("default:one", {"steps": ["a", "b"]})
    await until_began(body, "a", "b")
    (pending,) = await engine.list()
    assert (pending.id, pending.state, pending.payload) == ("default:one", RunState.RUNNING, {"steps": ["a", "b"]})
    assert pending.notes == {"a": {"worker": "at a"}, "b": {"worker": "at b"}}
    body.gate("b").set()
    body.gate("a").set()
    run = await until_state(engine, "default:one", RunState.ENDED)
    assert run.results == {"a": {"made": "a"}, "b": {"made": "b"}}
    assert await engine.list() == []
    assert await engine.get("default:other") is None


async def test_the_same_id_is_run_once(engine: DbosEngine) -> None:
    body = Body()
    await engine.start(body.run)
    for steps in (["a"], ["other"]):
        await engine.submit("default:one", {"steps": steps})
    body.gate("a").set()
    await until_state(engine, "default:one", RunState.ENDED)
    assert body.began == ["a"]


async def test_what_had_not_ended_goes_on_in_the_next_process_and_nothing_is_done_twice(tmp_path: Path) -> None:
    first, body = DbosEngine(tmp_path / "jobs.sqlite", "test"), Body()
    await first.start(body.run)
    await first.submit("default:one", {"steps": ["a", "b", "c"]})
    await until_began(body, "a", "b", "c")
    body.gate("b").set()
    async with asyncio.timeout(20):
        while "b" not in (await first.list())[0].results:
            await asyncio.sleep(0.01)
    await first.close()
    assert sorted(body.interrupted) == ["a", "c"]

    second, body = DbosEngine(tmp_path / "jobs.sqlite", "test"), Body()
    await second.start(body.run)
    try:
        (pending,) = await second.list()
        assert pending.results == {"b": {"made": "b"}}
        assert pending.notes["a"] == {"worker": "at a"}
        await until_began(body, "a", "c")
        body.gate("c").set()
        body.gate("a").set()
        run = await until_state(second, "default:one", RunState.ENDED)
        assert set(run.results) == {"a", "b", "c"}
        assert sorted(body.began) == ["a", "c"]
    finally:
        await second.close()


async def test_cancelling_interrupts_the_work_and_tells_the_body(engine: DbosEngine) -> None:
    body, told = Body(), asyncio.Event()

    async def run(durable: Durable, payload: Json) -> Json:
        try:
            return await body.run(durable, payload)
        except RunCancelled:
            told.set()
            raise

    await engine.start(run)
    await engine.submit("default:one", {"steps": ["a", "b"]})
    await until_began(body, "a", "b")
    await engine.cancel("default:one")
    await asyncio.wait_for(told.wait(), 20)
    assert body.interrupted
    assert (await until_state(engine, "default:one", RunState.CANCELLED)).results == {}


async def test_a_result_that_comes_after_the_cancellation_does_not_stop_it(engine: DbosEngine) -> None:
    body, told = Body(), asyncio.Event()

    async def run(durable: Durable, payload: Json) -> Json:
        try:
            return await body.run(durable, payload)
        except RunCancelled:
            told.set()
            raise

    await engine.start(run)
    await engine.submit("default:one", {"steps": ["a", "b"]})
    await until_began(body, "a", "b")
    await engine.cancel("default:one")
    body.gate("a").set()
    await asyncio.wait_for(told.wait(), 20)
    assert (await until_state(engine, "default:one", RunState.CANCELLED)).results == {}


async def test_a_cancelled_run_is_not_taken_up_again(tmp_path: Path) -> None:
    first, body = DbosEngine(tmp_path / "jobs.sqlite", "test"), Body()
    await first.start(body.run)
    await first.submit("default:one", {"steps": ["a"]})
    await until_began(body, "a")
    await first.cancel("default:one")
    await first.close()
    second, body = DbosEngine(tmp_path / "jobs.sqlite", "test"), Body()
    await second.start(body.run)
    try:
        assert await second.list() == []
        assert (await second.get("default:one")).state is RunState.CANCELLED
    finally:
        await second.close()


async def test_a_defect_of_the_body_ends_its_run(engine: DbosEngine) -> None:
    async def run(durable: Durable, payload: Json) -> Json:
        raise KeyError("x")

    await engine.start(run)
    await engine.submit("default:one", {})
    await until_state(engine, "default:one", RunState.LOST)


async def test_a_second_process_is_kept_off_the_database(tmp_path: Path) -> None:
    first, second = (DbosEngine(tmp_path / "jobs.sqlite", "test") for _ in range(2))
    first.take()
    try:
        with pytest.raises(SqueezeflowError, match="another orchestrator") as caught:
            second.take()
        assert caught.value.reason == "INVALID_PARAMETER"
    finally:
        await first.close()
    second.take()
    await second.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(b"not a database" * 100)
    engine = DbosEngine(path, "test")
    with pytest.raises(SqueezeflowError, match="SQUEEZEFLOW_DATABASE"):
        await engine.start(Body().run)
    await engine.close()


async def test_nothing_is_pickled(engine: DbosEngine, tmp_path: Path) -> None:
    body = Body()
    await engine.start(body.run)
    await engine.submit("default:one", {"steps": ["a"], "marker": "in the open"})
    body.gate("a").set()
    await until_state(engine, "default:one", RunState.ENDED)
    await engine.close()
    data = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
    assert b'"in the open"' in data
    assert b"py_pickle" not in data
