"""`Jobs`: turns requests into calls of `jobs.Jobs`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from squeezeflow.orchestrator.jobs import Jobs
from squeezeflow.rpc.tenant import current_tenant
from squeezeflow.v1 import jobs_pb2, jobs_pb2_grpc


class JobsService(jobs_pb2_grpc.JobsServicer):
    """Serves `Jobs`."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def CreateJob(self, request: jobs_pb2.CreateJobRequest, context: Any) -> jobs_pb2.Job:
        return await self._jobs.create(current_tenant(), request)

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Any) -> jobs_pb2.Job:
        return await self._jobs.get(current_tenant(), request.id)

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Any) -> jobs_pb2.ListJobsResponse:
        return await self._jobs.list(current_tenant(), page_size=request.page_size, page_token=request.page_token)

    async def WatchJob(
        self, request: jobs_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        async for job in self._jobs.watch(current_tenant(), request.id):
            yield jobs_pb2.WatchJobResponse(job=job)

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Any) -> jobs_pb2.Job:
        return await self._jobs.cancel(current_tenant(), request.id)
