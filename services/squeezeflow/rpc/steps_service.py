"""`Steps`: list, watch and cancel what runs on this worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from squeezeflow.rpc.server import Mount
from squeezeflow.rpc.steps import StepRunner
from squeezeflow.v1 import step_pb2, step_pb2_grpc


class StepsService(step_pb2_grpc.StepsServicer):
    """Serves `Steps` over a worker's runner."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner

    async def ListSteps(self, request: step_pb2.ListStepsRequest, context: Any) -> step_pb2.ListStepsResponse:
        return step_pb2.ListStepsResponse(steps=self._runner.list())

    async def WatchStep(self, request: step_pb2.WatchStepRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        async for event in self._runner.watch(request.action):
            yield event

    async def CancelStep(self, request: step_pb2.CancelStepRequest, context: Any) -> step_pb2.Step:
        return self._runner.cancel(request.action)


def steps_mount(runner: StepRunner) -> Mount:
    """Gives the mount of `Steps` for a worker."""
    return Mount("squeezeflow.v1.Steps", step_pb2_grpc.add_StepsServicer_to_server, StepsService(runner))
