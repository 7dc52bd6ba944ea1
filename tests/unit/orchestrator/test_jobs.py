"""Jobs over an engine in memory and a real folder store; the calls to workers are played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.unit.orchestrator.builders import ALL_DATA, description, failed, spec_of, succeeded
from tests.unit.orchestrator.memory_engine import MemoryEngine

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import open_store
from squeezeflow.orchestrator.calls import Call, Listener
from squeezeflow.orchestrator.checks import Findings
from squeezeflow.orchestrator.documents import JobDocuments
from squeezeflow.orchestrator.jobs import Jobs
from squeezeflow.orchestrator.leftovers import Leftovers
from squeezeflow.orchestrator.record import Accepted, Outcome
from squeezeflow.orchestrator.report import CANCELLED, FAILED, FINAL, QUEUED, RUNNING, SUCCEEDED
from squeezeflow.v1 import jobs_pb2, step_pb2

AWAY = SqueezeflowError("STORE_UNAVAILABLE", "the store does not answer")


class FakeCaller:
    """Plays steps: those of a held technique wait until they are let go."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.ended: list[str] = []
        self.holds: dict[str, asyncio.Event] = {}
        self.fails: dict[str, Outcome] = {}
        self.raises: Exception | None = None

    async def perform(self, call: Call, listener: Listener) -> Outcome:
        self.calls.append(call)
        if self.raises is not None:
            raise self.raises
        await listener.accepted(Accepted("w:1", "a" * 64, 1, 1.0), cached=False)
        listener.progressed(step_pb2.StepProgress(fraction=0.5, stage="training"))
        if call.technique in self.holds:
            await self.holds[call.technique].wait()
        self.ended.append(call.node)
        return self.fails.get(call.technique) or succeeded(call.node)

    def hold(self, technique: str) -> asyncio.Event:
        return self.holds.setdefault(technique, asyncio.Event())

    async def until_called(self, technique: str) -> None:
        await until(lambda: any(call.technique == technique for call in self.calls))


class FakeChecks:
    """Finds everything in order, or nothing."""

    def __init__(self) -> None:
        self.refuses: SqueezeflowError | None = None
        self.runs = 0

    async def run(self, tenant: str, spec: jobs_pb2.JobSpec) -> Findings:
        self.runs += 1
        if self.refuses is not None:
            raise self.refuses
        return Findings(description(), ALL_DATA, ("arrays not used: extra",))


class FlakyDocuments(JobDocuments):
    """Documents over a store that can be away."""

    away = False

    def put(self, tenant: str, job: jobs_pb2.Job) -> None:
        if self.away:
            raise AWAY
        super().put(tenant, job)


class Desk:
    """One orchestrator process, without its process."""

    def __init__(self, folder: Path, before: Desk | None = None) -> None:
        self.engine = MemoryEngine(before.engine if before else None)
        self.caller = FakeCaller()
        self.checks = FakeChecks()
        self.store = open_store(f"dir:{folder / 'store'}")
        self.documents = FlakyDocuments(self.store)
        parts: list[Any] = [self.engine, self.caller, self.checks, self.documents, Leftovers(self.store)]
        self.jobs = Jobs(*parts)

    async def create(self, *recipes: str, tenant: str = "default", **fields: Any) -> jobs_pb2.Job:
        request = jobs_pb2.CreateJobRequest(spec=spec_of(*(recipes or ("dynamic",))), **fields)
        return await self.jobs.create(tenant, request)

    async def ended(self, job: str) -> jobs_pb2.Job:
        async with asyncio.timeout(20):
            return [each async for each in self.jobs.watch("default", job)][-1]

    async def settled(self, job: str) -> jobs_pb2.Job:
        """Waits until the job is shown from its document."""
        await until(lambda: self.engine.states[f"default:{job}"].value != "running")
        return await self.jobs.get("default", job)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def orchestrator(folder: Path, before: Desk | None = None) -> AsyncIterator[Desk]:
    desk = Desk(folder, before)
    await desk.jobs.start()
    try:
        yield desk
    finally:
        await desk.jobs.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with orchestrator(tmp_path) as desk:
        yield desk


async def test_a_job_runs_to_its_end_and_is_kept_as_a_document(desk: Desk) -> None:
    created = await desk.create("dynamic", "prune")
    assert created.state in (QUEUED, RUNNING)
    assert created.notes == ["arrays not used: extra"]
    ended = await desk.ended(created.id)
    assert ended.state == SUCCEEDED
    assert await desk.settled(created.id) == desk.documents.get("default", created.id) == ended
    assert len(desk.caller.calls) == 3 + 1 + 3 + 3


async def test_validate_only_plans_and_starts_nothing(desk: Desk) -> None:
    planned = await desk.create("dynamic", validate_only=True, request_id="r")
    assert (planned.id, planned.state, len(planned.candidates)) == ("", QUEUED, 2)
    assert not desk.engine.payloads
    assert desk.documents.claimed("default", "r") == ""


async def test_a_request_that_is_refused_leaves_nothing(desk: Desk) -> None:
    desk.checks.refuses = SqueezeflowError("CODE_IN_MODEL", "a Lambda layer")
    with pytest.raises(SqueezeflowError):
        await desk.create(request_id="r")
    assert not desk.engine.payloads
    desk.checks.refuses = None
    assert (await desk.create(request_id="r")).id


async def test_a_request_id_gives_the_job_that_it_made(desk: Desk) -> None:
    first, twin = await asyncio.gather(desk.create(request_id="r"), desk.create(request_id="r"))
    assert first.id == twin.id
    desk.checks.refuses = SqueezeflowError("WORKER_UNAVAILABLE", "the converter is away")
    assert (await desk.create("prune", request_id="r")).id == first.id
    await desk.settled(first.id)
    assert (await desk.create(request_id="r")).state == SUCCEEDED
    desk.checks.refuses = None
    assert (await desk.create(request_id="r", tenant="other")).id != first.id
    assert (await desk.create(request_id="s")).id != first.id


async def test_a_claim_without_a_job_is_used_by_the_next_call(desk: Desk) -> None:
    desk.engine.refuses = RuntimeError("the process dies here")
    with pytest.raises(RuntimeError):
        await desk.create(request_id="r")
    claimed = desk.documents.claimed("default", "r")
    desk.engine.refuses = None
    assert (await desk.create(request_id="r")).id == claimed


async def test_a_caller_that_goes_away_leaves_a_job_that_runs(desk: Desk) -> None:
    creating = asyncio.create_task(desk.create(request_id="r"))
    await desk.engine.submitting.wait()
    creating.cancel()
    await asyncio.wait({creating})
    job = desk.documents.claimed("default", "r")
    assert (await desk.ended(job)).state == SUCCEEDED


async def test_another_tenants_job_is_not_found(desk: Desk) -> None:
    job = await desk.create()
    for call in (desk.jobs.get, desk.jobs.cancel):
        with pytest.raises(SqueezeflowError) as caught:
            await call("other", job.id)
        assert caught.value.reason == "NOT_FOUND"
    with pytest.raises(SqueezeflowError):
        await anext(desk.jobs.watch("other", job.id))
    assert not (await desk.jobs.list("other", page_size=0, page_token="")).jobs


async def test_jobs_are_listed_in_pages_the_newest_first_whether_they_run_or_not(desk: Desk) -> None:
    ids = []
    for index in range(5):
        if index == 3:
            desk.caller.hold("convert")
        ids.append((await desk.create()).id)
        await asyncio.sleep(0.002)
        if index < 3:
            await desk.settled(ids[-1])
    found, token = [], ""
    for _ in range(3):
        page = await desk.jobs.list("default", page_size=2, page_token=token)
        found += [(job.id, job.state in FINAL) for job in page.jobs]
        token = page.next_page_token
    assert found == [(job, index < 3) for index, job in reversed(list(enumerate(ids)))]
    assert token == ""


async def test_a_cancelled_job_says_so_while_and_after(desk: Desk) -> None:
    desk.caller.hold("convert")
    job = await desk.create("dynamic", "prune")
    await desk.caller.until_called("convert")
    await until(lambda: len(desk.caller.ended) == 2)
    answer = await desk.jobs.cancel("default", job.id)
    assert answer.state in (jobs_pb2.JOB_STATE_CANCELLING, CANCELLED)
    assert (await desk.ended(job.id)).state == CANCELLED
    assert (await desk.settled(job.id)).state == CANCELLED
    assert (await desk.jobs.cancel("default", job.id)).state == CANCELLED
    assert "evaluate" not in {call.technique for call in desk.caller.calls}


async def test_a_job_that_has_ended_is_not_cancelled(desk: Desk) -> None:
    job = await desk.create()
    await desk.settled(job.id)
    assert (await desk.jobs.cancel("default", job.id)).state == SUCCEEDED


async def test_a_failed_step_is_the_candidates_error(desk: Desk) -> None:
    desk.caller.fails["prune"] = failed("UNSUPPORTED_LAYER", "no layer can be pruned")
    job = await desk.ended((await desk.create("dynamic", "prune")).id)
    assert job.state == SUCCEEDED
    assert [c.error.reason for c in job.candidates] == ["", "", "UNSUPPORTED_LAYER"]


async def test_a_defect_fails_the_job_and_is_told(desk: Desk) -> None:
    desk.caller.raises = KeyError("x")
    job = await desk.ended((await desk.create()).id)
    assert (job.state, job.error.reason) == (FAILED, "INTERNAL")
    assert "defect" in job.error.message


async def test_while_a_job_runs_its_document_follows(desk: Desk) -> None:
    desk.caller.hold("convert")
    job = await desk.create()
    await desk.caller.until_called("convert")

    def running() -> bool:
        document = desk.documents.get("default", job.id)
        return document is not None and document.state == RUNNING

    await until(running)


async def test_a_store_that_is_away_at_the_end_loses_nothing(desk: Desk) -> None:
    desk.documents.away = True
    job = await desk.create()
    assert (await desk.ended(job.id)).state == SUCCEEDED
    assert len(await desk.engine.list()) == 1, "not ended before it is written down"
    desk.documents.away = False
    assert (await desk.settled(job.id)).state == SUCCEEDED


async def test_the_next_process_shows_at_once_what_was_known_and_goes_on(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as first:
        first.caller.hold("prune")
        job = await first.create("dynamic", "prune")
        await first.caller.until_called("prune")
        await until(lambda: len(first.caller.ended) == 4)  # both files and what evaluates them
        before = await first.jobs.get("default", job.id)
    done = set(first.caller.ended)
    async with orchestrator(tmp_path, first) as second:
        shown = await second.jobs.get("default", job.id)
        assert [c.artifact for c in shown.candidates] == [c.artifact for c in before.candidates]
        ended = await second.ended(job.id)
        assert ended.state == SUCCEEDED
        assert not done & {call.node for call in second.caller.calls}
        (prune,) = [call for call in second.caller.calls if call.technique == "prune"]
        assert prune.known == Accepted("w:1", "a" * 64, 1, 1.0)


async def test_a_job_that_ended_while_the_store_was_away_is_written_by_the_next_process(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as first:
        first.documents.away = True
        job = await first.create()
        ended = await first.ended(job.id)
    async with orchestrator(tmp_path, first) as second:
        assert await second.settled(job.id) == ended
        assert second.caller.calls == []


async def test_a_document_left_behind_by_a_cancelled_job_is_put_right(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as first:
        first.caller.hold("convert")
        job = await first.create()
        await first.caller.until_called("convert")
        await until(lambda: first.documents.get("default", job.id) is not None)
        first.documents.away = True
        await first.jobs.cancel("default", job.id)
    async with orchestrator(tmp_path, first) as second:
        found = await second.jobs.get("default", job.id)
        assert found.state == CANCELLED
        assert second.documents.get("default", job.id) == found


async def test_a_job_that_the_engine_has_lost_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as first:
        first.caller.hold("convert")
        job = await first.create()
        await first.caller.until_called("convert")
        await until(lambda: first.documents.get("default", job.id) is not None)
    async with orchestrator(tmp_path) as other_database:
        found = await other_database.ended(job.id)
        assert (found.state, found.error.reason) == (FAILED, "INTERNAL")
        assert "database" in found.error.message


async def test_who_watches_is_sent_away_when_the_process_stops(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as desk:
        desk.caller.hold("convert")
        job = await desk.create()
        watching = asyncio.create_task(desk.ended(job.id))
        await desk.caller.until_called("convert")
    with pytest.raises(SqueezeflowError) as caught:
        await asyncio.wait_for(watching, 20)
    assert caught.value.reason == "WORKER_UNAVAILABLE"


MINE = "tenants/default/checkpoints/" + "a" * 64  # of every step that the caller plays
KEPT = ["tenants/default/checkpoints/" + "b" * 64, "tenants/other/checkpoints/" + "a" * 64]


def leave_checkpoints(desk: Desk) -> None:
    """Plays a worker that died in the middle of a training: its own checkpoint, and some that are not the job's."""
    for key in (MINE, *KEPT):
        desk.store.put_bytes(key, b"state")


def checkpoints(desk: Desk) -> list[str]:
    return [key for key in desk.store.list("tenants/") if "/checkpoints/" in key]


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
async def test_a_job_that_ended_leaves_no_checkpoint_and_takes_none_of_others(desk: Desk, fails: bool) -> None:
    if fails:
        desk.caller.fails["prune"] = failed("CHILD_CRASHED", "SIGSEGV")
    let_go = desk.caller.hold("prune")
    job = await desk.create("prune")
    await desk.caller.until_called("prune")
    leave_checkpoints(desk)
    let_go.set()
    await desk.settled(job.id)
    assert checkpoints(desk) == KEPT


async def test_steps_that_do_not_train_have_no_checkpoints_to_remove(desk: Desk) -> None:
    leave_checkpoints(desk)
    await desk.settled((await desk.create("dynamic")).id)
    assert checkpoints(desk) == [MINE, *KEPT]


async def test_a_checkpoint_that_another_job_trains_on_goes_with_the_last_of_them(desk: Desk) -> None:
    desk.caller.hold("prune")
    jobs = [await desk.create("prune") for _ in range(2)]
    await until(lambda: sum(call.technique == "prune" for call in desk.caller.calls) == 2)
    leave_checkpoints(desk)
    for job, left in zip(jobs, ([MINE, *KEPT], KEPT), strict=True):
        await desk.jobs.cancel("default", job.id)
        assert (await desk.ended(job.id)).state == CANCELLED
        await until(lambda job=job: f"default:{job.id}" not in desk.jobs._live)
        assert checkpoints(desk) == left


async def test_a_job_that_ends_after_a_restart_leaves_no_checkpoint(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as first:
        first.caller.hold("prune")
        jobs = [await first.create("prune") for _ in range(2)]
        await until(lambda: sum(call.technique == "prune" for call in first.caller.calls) == 2)
        leave_checkpoints(first)
    async with orchestrator(tmp_path, first) as second:
        await second.settled(jobs[0].id)
        await second.settled(jobs[1].id)
        assert checkpoints(second) == KEPT


async def test_what_a_cancelled_job_left_goes_when_its_document_is_put_right(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as first:
        first.caller.hold("prune")
        job = await first.create("prune")
        await first.caller.until_called("prune")
        await until(lambda: first.documents.get("default", job.id) is not None)
        first.documents.away = True
        await first.jobs.cancel("default", job.id)
    leave_checkpoints(first)
    async with orchestrator(tmp_path, first) as second:
        assert (await second.jobs.get("default", job.id)).state == CANCELLED
        assert checkpoints(second) == KEPT


async def test_a_store_that_is_away_does_not_keep_a_job_from_its_end(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    let_go = desk.caller.hold("prune")
    job = await desk.create("prune")
    await desk.caller.until_called("prune")
    leave_checkpoints(desk)
    folder = tmp_path / "store" / "tenants" / "default" / "checkpoints"
    folder.rename(tmp_path / "moved")
    folder.symlink_to(folder)  # whatever is asked of it fails
    let_go.set()
    await desk.settled(job.id)
    assert "were not removed" in caplog.text
