"""Jobs from their creation to their document: what the `Jobs` rpcs do, and the body that the engine runs for each.

A job's truth is in the engine. What runs is shown from memory, what has ended from its document in the store; a
document that was left behind unfinished is put right when it is read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from weakref import WeakValueDictionary

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.orchestrator.calls import Call, Caller
from squeezeflow.orchestrator.checks import Checks
from squeezeflow.orchestrator.documents import JobDocuments, new_id
from squeezeflow.orchestrator.engine import Durable, Engine, RunCancelled, RunState
from squeezeflow.orchestrator.keeper import keep_document, put_for_certain
from squeezeflow.orchestrator.leftovers import Leftovers
from squeezeflow.orchestrator.live import LiveJob
from squeezeflow.orchestrator.plan import Node, make_plan
from squeezeflow.orchestrator.recipes import resolve
from squeezeflow.orchestrator.record import Accepted, JobRecord, Json, Outcome
from squeezeflow.orchestrator.report import FINAL, Ending, assemble
from squeezeflow.orchestrator.requests import request_for
from squeezeflow.orchestrator.workflow import run_plan
from squeezeflow.v1 import errors_pb2, jobs_pb2, step_pb2

log = logging.getLogger(__name__)

_WATCH_SECONDS = 0.1
_CLOSE_SECONDS = 3.0
_PAGE = 50
_READERS = 16  # documents of a page that are read at the same time


class Jobs:
    """All jobs of all tenants."""

    def __init__(
        self, engine: Engine, caller: Caller, checks: Checks, documents: JobDocuments, leftovers: Leftovers
    ) -> None:
        self._engine = engine
        self._caller = caller
        self._checks = checks
        self._documents = documents
        self._leftovers = leftovers
        self._live: dict[str, LiveJob] = {}
        self._restored = asyncio.Event()
        self._closing = False
        self._creating: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def start(self) -> None:
        """Starts the engine and shows again what had not ended."""
        await self._engine.start(self._body)
        for run in await self._engine.list():
            live = LiveJob.restored(run)
            self._live[live.record.key] = live
            log.info("job %s goes on", live.record.key)
        self._restored.set()

    async def close(self) -> None:
        """Sends watchers away and stops the engine; jobs go on at the next start."""
        self._closing = True
        for live in self._live.values():
            live.wake()
        # A job that has ended is written down still, where the store takes it.
        settling = [asyncio.create_task(live.settled.wait()) for live in self._live.values() if live.final]
        if settling:
            await asyncio.wait(settling, timeout=_CLOSE_SECONDS)
        await self._engine.close()

    async def create(self, tenant: str, request: jobs_pb2.CreateJobRequest) -> jobs_pb2.Job:
        """Checks, plans and starts a job; with `validate_only` it is only planned."""
        if request.validate_only:
            return assemble(await self._plan(tenant, request.spec, ""), {})
        if not request.request_id:
            return await self._start(await self._plan(tenant, request.spec, new_id()))
        key = (tenant, request.request_id)
        lock = self._creating.setdefault(key, asyncio.Lock())
        async with lock:
            return await self._create_once(tenant, request)

    async def _create_once(self, tenant: str, request: jobs_pb2.CreateJobRequest) -> jobs_pb2.Job:
        claimed = await asyncio.to_thread(self._documents.claimed, tenant, request.request_id)
        known = await self._find(tenant, claimed) if claimed else None
        if known is not None:
            return known
        record = await self._plan(tenant, request.spec, claimed or new_id())
        if not claimed:
            await asyncio.to_thread(self._documents.claim, tenant, request.request_id, record.id)
        return await self._start(record)

    async def _plan(self, tenant: str, spec: jobs_pb2.JobSpec, job: str) -> JobRecord:
        recipes = resolve(spec)
        findings = await self._checks.run(tenant, spec)
        plan = make_plan(spec, recipes, findings.description, findings.facts)
        filled = jobs_pb2.JobSpec()
        filled.CopyFrom(spec)
        del filled.recipes[:]
        filled.recipes.extend(recipes)
        return JobRecord(tenant, job, time.time(), filled, plan, findings.notes)

    async def _start(self, record: JobRecord) -> jobs_pb2.Job:
        await self._restored.wait()
        live = self._live[record.key] = LiveJob(record)
        # A caller that goes away now must not leave a run that is recorded and not started.
        await asyncio.shield(asyncio.create_task(self._submit(record)))
        log.info("job %s: %d steps", record.key, len(record.plan.nodes))
        return live.job()

    async def _submit(self, record: JobRecord) -> None:
        try:
            await self._engine.submit(record.key, record.to_json())
        except Exception:
            self._live.pop(record.key, None)
            raise

    async def get(self, tenant: str, job: str) -> jobs_pb2.Job:
        """Gives a job as it stands; NOT_FOUND."""
        found = await self._find(tenant, job)
        if found is None:
            raise SqueezeflowError("NOT_FOUND", f"there is no job {job}: list the jobs to see their ids")
        return found

    async def list(self, tenant: str, *, page_size: int, page_token: str) -> jobs_pb2.ListJobsResponse:
        """Gives a page of jobs, the newest first."""
        await self._restored.wait()
        size = page_size or _PAGE
        stored = await asyncio.to_thread(self._documents.ids, tenant, start_after=page_token, limit=size + 1)
        live = [each.record.id for each in self._live.values() if each.record.tenant == tenant]
        ids = sorted({*stored, *(job for job in live if job > page_token)})[: size + 1]
        readers = asyncio.Semaphore(_READERS)

        async def read(job: str) -> jobs_pb2.Job | None:
            async with readers:
                return await self._find(tenant, job)

        jobs = await asyncio.gather(*(read(job) for job in ids[:size]))
        more = ids[size - 1] if len(ids) > size else ""
        return jobs_pb2.ListJobsResponse(jobs=[job for job in jobs if job is not None], next_page_token=more)

    async def watch(self, tenant: str, job: str) -> AsyncGenerator[jobs_pb2.Job, None]:
        """Gives a job as it stands and whenever it changes, until it has ended; NOT_FOUND."""
        current = await self.get(tenant, job)
        live = self._live.get(f"{tenant}:{job}")
        if live is None:
            yield current
            return
        async for each in live.watch(_WATCH_SECONDS):
            if self._closing and each.state not in FINAL:
                raise SqueezeflowError("WORKER_UNAVAILABLE", "the orchestrator is stopping: watch the job again")
            yield each

    async def cancel(self, tenant: str, job: str) -> jobs_pb2.Job:
        """Ends a job; one that has ended stays as it is; NOT_FOUND."""
        current = await self.get(tenant, job)
        live = self._live.get(f"{tenant}:{job}")
        if live is None or current.state in FINAL:
            return current
        live.end(Ending(cancelling=True))
        await self._engine.cancel(live.record.key)
        if not live.body_runs:
            # Nobody else will: a run that waits to be taken up again is not taken up any more.
            live.end(Ending(cancelling=True, ended=time.time()))
            await put_for_certain(self._documents, tenant, live.job())
            await self._leftovers.remove(live, self._live.values())
            self._live.pop(live.record.key, None)
        return live.job()

    # --- the body ------------------------------------------------------------------------------------------------

    async def _body(self, durable: Durable, payload: Json) -> Json:
        """Runs one job; also what the engine runs again after a crash."""
        await self._restored.wait()
        record = JobRecord.from_json(payload)
        live = self._live.setdefault(record.key, LiveJob(record))
        live.body_runs = True
        keeper = asyncio.create_task(keep_document(self._documents, live))
        try:
            await self._run(durable, live)
        except RunCancelled:
            live.end(Ending(cancelling=True, ended=time.time()))
            await keeper
            raise
        else:
            await keeper
        finally:
            keeper.cancel()
            if live.final:
                await self._leftovers.remove(live, self._live.values())
            live.settled.set()
            if live.final:
                self._live.pop(record.key, None)
        state = jobs_pb2.JobState.Name(live.job().state)
        log.info("job %s: %s", record.key, state)
        return {"state": state}

    async def _run(self, durable: Durable, live: LiveJob) -> None:
        async def perform(node: Node, results: Mapping[str, step_pb2.StepResult]) -> Outcome:
            live.called(node.id)
            request = request_for(node, live.record.spec, results)
            call = Call(live.record.tenant, node.id, node.technique, request, live.step(node.id).accepted)
            return await self._caller.perform(call, _Listener(live, node.id, durable))

        try:
            await run_plan(durable, live.record.plan, perform, live.ended)
        except Exception as error:
            log.exception("job %s failed", live.record.key)
            text = f"{type(error).__name__}: {error}: this is a defect of Squeezeflow"
            live.end(Ending(ended=time.time(), error=errors_pb2.Error(reason="INTERNAL", message=text)))

    # --- documents -----------------------------------------------------------------------------------------------

    async def _find(self, tenant: str, job: str) -> jobs_pb2.Job | None:
        await self._restored.wait()
        live = self._live.get(f"{tenant}:{job}")
        if live is not None:
            return live.job()
        document = await asyncio.to_thread(self._documents.get, tenant, job)
        if document is None or document.state in FINAL:
            return document
        return await self._put_right(tenant, document)

    async def _put_right(self, tenant: str, document: jobs_pb2.Job) -> jobs_pb2.Job:
        """Finishes a document whose job ended while nobody could write it."""
        run = await self._engine.get(f"{tenant}:{document.id}")
        live = self._live.get(f"{tenant}:{document.id}")
        if live is not None:
            return live.job()
        if run is None:
            message = "the orchestrator's database no longer knows this job: submit it again"
            document.state = jobs_pb2.JOB_STATE_FAILED
            document.error.CopyFrom(errors_pb2.Error(reason="INTERNAL", message=message))
            document.end_time.GetCurrentTime()
        else:
            left = LiveJob.restored(run)
            lost = errors_pb2.Error(reason="INTERNAL", message="the engine gave the job up: submit it again")
            left.end(Ending(ended=time.time(), error=None if run.state is RunState.CANCELLED else lost))
            document = left.job()
            await self._leftovers.remove(left, self._live.values())
        await asyncio.to_thread(self._documents.put, tenant, document)
        return document


class _Listener:
    """Carries a step's news to the job, and where it runs to the engine."""

    def __init__(self, live: LiveJob, node: str, durable: Durable) -> None:
        self._live = live
        self._node = node
        self._durable = durable

    async def accepted(self, accepted: Accepted, *, cached: bool) -> None:
        """Keeps the worker's address, unless there is nothing left to go back for."""
        self._live.accepted(self._node, accepted, cached=cached)
        if not cached:
            await self._durable.note(self._node, accepted.to_json())

    def progressed(self, progress: step_pb2.StepProgress) -> None:
        """Shows the progress."""
        self._live.progressed(self._node, progress)

    def cancelling(self) -> bool:
        """Tells whether a caller asked for the job's end."""
        return self._live.ending.cancelling
