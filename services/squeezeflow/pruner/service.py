"""`Pruner`: turns requests into steps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from squeezeflow.rpc.steps import StepRunner, technique_call
from squeezeflow.v1 import pruner_pb2, pruner_pb2_grpc, step_pb2


class PrunerService(pruner_pb2_grpc.PrunerServicer):
    """Serves `Pruner` over a step runner."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner

    async def Prune(self, request: pruner_pb2.PruneRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        call = technique_call("prune", "squeezeflow.pruner.prune:run", request)
        async for event in self._runner.stream(call):
            yield event

    async def Cluster(self, request: pruner_pb2.ClusterRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        call = technique_call("cluster", "squeezeflow.pruner.cluster:run", request)
        async for event in self._runner.stream(call):
            yield event
