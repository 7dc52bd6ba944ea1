"""What happens around every rpc: the tenant is taken, requests are checked, exceptions become rich statuses."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import grpc
import grpc.aio

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.rpc.checks import check_message
from squeezeflow.rpc.errors import STATUS_DETAILS, status_code, to_status
from squeezeflow.rpc.tenant import enter_tenant

log = logging.getLogger(__name__)

# gRPC's own services: nothing of ours applies to them.
_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of every service.

    Args:
        foreign: full names of services whose clients send extensions of their own: their messages are not checked.
    """

    def __init__(self, foreign: Collection[str] = ()) -> None:
        self._foreign = tuple(f"/{name}/" for name in foreign)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Gives the handler with our behaviour around it."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or method.startswith(_INFRASTRUCTURE):
            return handler
        check = _no_check if method.startswith(self._foreign) else check_message
        return _Wrapped(handler, method, check).handler()


def _no_check(message: Any) -> None:
    del message


@dataclasses.dataclass(frozen=True)
class _Wrapped:
    """One rpc with our behaviour around it."""

    inner: Any
    method: str
    check: Callable[[Any], None]

    def handler(self) -> Any:
        inner = self.inner
        codec = {
            "request_deserializer": inner.request_deserializer,
            "response_serializer": inner.response_serializer,
        }
        if inner.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(inner.unary_unary), **codec)
        if inner.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(inner.unary_stream), **codec)
        if inner.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary(inner.stream_unary, streamed=True), **codec)
        return grpc.stream_stream_rpc_method_handler(self._stream(inner.stream_stream, streamed=True), **codec)

    def _enter(self, request: Any, context: Any, streamed: bool) -> Any:
        enter_tenant(context.invocation_metadata() or ())
        if streamed:
            return self._checked(request)
        self.check(request)
        return request

    async def _checked(self, requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            self.check(request)
            yield request

    def _unary(self, behaviour: Any, streamed: bool = False) -> Any:
        async def call(request: Any, context: Any) -> Any:
            try:
                return await behaviour(self._enter(request, context, streamed), context)
            except Exception as error:
                await self._abort(context, error)

        return call

    def _stream(self, behaviour: Any, streamed: bool = False) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for response in behaviour(self._enter(request, context, streamed), context):
                    yield response
            except Exception as error:
                await self._abort(context, error)

        return call

    async def _abort(self, context: Any, error: Exception) -> None:
        if isinstance(error, grpc.aio.AbortError | grpc.aio.UsageError | asyncio.CancelledError):
            raise error
        if not isinstance(error, SqueezeflowError):
            log.error("%s failed", self.method, exc_info=error)
            error = SqueezeflowError(
                "INTERNAL", f"{self.method} failed: {type(error).__name__}: {error}: this is a defect of Squeezeflow"
            )
        elif error.reason in ("INTERNAL", "DIGEST_MISMATCH"):
            log.error("%s: %s %s", self.method, error, error.metadata)
        status = to_status(error)
        await context.abort(
            status_code(error), status.message, trailing_metadata=((STATUS_DETAILS, status.SerializeToString()),)
        )
