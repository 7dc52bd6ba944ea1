"""`Quantizer`: turns requests into steps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from squeezeflow.rpc.steps import StepRunner, technique_call
from squeezeflow.v1 import quantizer_pb2, quantizer_pb2_grpc, step_pb2


class QuantizerService(quantizer_pb2_grpc.QuantizerServicer):
    """Serves `Quantizer` over a step runner."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner

    async def Quantize(self, request: quantizer_pb2.QuantizeRequest, context: Any) -> AsyncIterator[step_pb2.StepEvent]:
        call = technique_call("quantize", "squeezeflow.quantizer.quantize:run", request)
        async for event in self._runner.stream(call):
            yield event

    async def TrainQuantized(
        self, request: quantizer_pb2.TrainQuantizedRequest, context: Any
    ) -> AsyncIterator[step_pb2.StepEvent]:
        call = technique_call("train_quantized", "squeezeflow.quantizer.train_quantized:run", request)
        async for event in self._runner.stream(call):
            yield event
