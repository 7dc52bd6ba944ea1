"""Keeps the document of a job that runs: written when a state changes, and at the end for certain."""

from __future__ import annotations

import asyncio
import logging

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.orchestrator.documents import JobDocuments
from squeezeflow.orchestrator.live import LiveJob
from squeezeflow.orchestrator.report import FINAL
from squeezeflow.v1 import jobs_pb2

log = logging.getLogger(__name__)

# Documents are for those who come later; who watches is told by the process itself.
_LEAST_SECONDS = 1.0
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0


async def keep_document(documents: JobDocuments, live: LiveJob) -> None:
    """Follows a job to its end; done when the final document is written."""
    written: tuple[int, ...] = ()
    async for job in live.watch(_LEAST_SECONDS):
        states = _states(job)
        if job.state in FINAL:
            await put_for_certain(documents, live.record.tenant, job)
        elif states != written:
            try:
                await asyncio.to_thread(documents.put, live.record.tenant, job)
                written = states
            except SqueezeflowError as error:
                log.warning("the document of job %s was not written: %s", live.record.key, error)


async def put_for_certain(documents: JobDocuments, tenant: str, job: jobs_pb2.Job) -> None:
    """Writes a document, however long the store is away: until then the engine does not count the job as ended."""
    delay = _FIRST_DELAY
    while True:
        try:
            await asyncio.to_thread(documents.put, tenant, job)
            return
        except SqueezeflowError as error:
            log.warning("the document of job %s was not written, again in %g s: %s", job.id, delay, error)
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY)


def _states(job: jobs_pb2.Job) -> tuple[int, ...]:
    steps = [step.state for candidate in job.candidates for step in candidate.steps]
    return (job.state, *(candidate.state for candidate in job.candidates), *steps)
