"""Calls to workers, for callers that know addresses and messages but not gRPC.

A worker that is gone or silent is told apart from one that says no: the first is WORKER_UNAVAILABLE whatever gRPC made
of it (a cut stream, a reset, no event for too long), the second is the error that the worker sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.rpc.channels import open_channel
from squeezeflow.rpc.errors import STATUS_DETAILS, from_rpc_error
from squeezeflow.rpc.tenant import tenant_metadata
from squeezeflow.v1 import step_pb2

M = TypeVar("M", bound=Message)

# What gRPC says by itself when a connection breaks; a worker's own words come with details.
_BROKEN = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL})


class WorkerCalls:
    """Channels to workers, opened at the first call and kept."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        """Closes the channels; calls that run are cut off."""
        for channel in self._channels.values():
            await channel.close(None)
        self._channels.clear()

    async def step(
        self, target: str, method: str, request: Message, *, tenant: str, silence_seconds: float
    ) -> AsyncGenerator[step_pb2.StepEvent, None]:
        """Streams the events of a compute rpc.

        Args:
            target: HOST:PORT or gRPC target.
            method: full name, `squeezeflow.v1.Converter/Convert`.
            silence_seconds: without any event for so long the worker counts as gone.
        """
        call: Any = self._channel(target).unary_stream(
            f"/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=step_pb2.StepEvent.FromString,
        )(request, metadata=tenant_metadata(tenant))
        try:
            while True:
                async with asyncio.timeout(silence_seconds):
                    event = await call.read()
                if event is grpc.aio.EOF:
                    return
                yield event
        except TimeoutError as error:
            message = f"{method} at {target} gave no sign of life for {silence_seconds:g} s"
            raise SqueezeflowError("WORKER_UNAVAILABLE", message) from error
        except grpc.RpcError as error:
            raise _failure(error, f"{method} at {target}") from error
        finally:
            call.cancel()

    async def ask(
        self,
        target: str,
        method: str,
        request: Message,
        answer: Callable[[bytes], M],
        *,
        tenant: str,
        timeout: float,
    ) -> M:
        """Gives the answer of a unary rpc.

        Args:
            answer: the deserializer: `ModelDescription.FromString`.
            timeout: in seconds; TIMED_OUT after it.
        """
        call = self._channel(target).unary_unary(
            f"/{method}", request_serializer=type(request).SerializeToString, response_deserializer=answer
        )
        try:
            response: M = await call(request, metadata=tenant_metadata(tenant), timeout=timeout)
        except grpc.RpcError as error:
            raise _failure(error, f"{method} at {target}") from error
        return response

    def _channel(self, target: str) -> grpc.aio.Channel:
        if target not in self._channels:
            self._channels[target] = open_channel(target)
        return self._channels[target]


def _failure(error: Any, what: str) -> SqueezeflowError:
    worded = any(key == STATUS_DETAILS for key, _ in error.trailing_metadata() or ())
    if error.code() in _BROKEN and not worded:
        text = f"the connection to {what} broke: {error.code().name}: {error.details()}"
        return SqueezeflowError("WORKER_UNAVAILABLE", text)
    return from_rpc_error(error, what)
