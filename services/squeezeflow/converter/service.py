"""`Converter`: turns requests into steps, and describes models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from squeezeflow.converter.description import Describer
from squeezeflow.rpc.steps import StepRunner, technique_call
from squeezeflow.rpc.tenant import current_tenant
from squeezeflow.v1 import converter_pb2, converter_pb2_grpc, model_pb2, step_pb2


class ConverterService(converter_pb2_grpc.ConverterServicer):
    """Serves `Converter` over a step runner."""

    def __init__(self, runner: StepRunner, describer: Describer) -> None:
        self._runner = runner
        self._describer = describer

    async def DescribeModel(
        self, request: converter_pb2.DescribeModelRequest, context: Any
    ) -> model_pb2.ModelDescription:
        return await self._describer.describe(current_tenant(), request.model)

    async def Convert(self, request: converter_pb2.ConvertRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        call = technique_call("convert", "squeezeflow.converter.convert:run", request)
        async for event in self._runner.stream(call):
            yield event

    async def Export(self, request: converter_pb2.ExportRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        call = technique_call("export", "squeezeflow.converter.export:run", request)
        async for event in self._runner.stream(call):
            yield event
