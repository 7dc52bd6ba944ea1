"""A child that lives on and answers calls one after another: what holds a loaded model for serving."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import frames
from squeezeflow.core.sandbox.process import Child


class Session:
    """An open session; `Sandbox.session` makes it."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._turn = asyncio.Lock()
        self._calls = 0
        self._end: SqueezeflowError | None = None
        child.busy = False

    @property
    def alive(self) -> bool:
        """Whether the child is there and can be called."""
        return self._end is None and not self._child.exited.done()

    async def call(
        self, header: dict[str, Any], buffers: Sequence[frames.Buffer] = (), *, timeout: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Has the handler answer one call; calls wait for each other.

        Args:
            header: JSON object for the handler.
            buffers: raw bytes that travel beside it.
            timeout: seconds that the handler may take; waiting for other calls does not count.

        Raises:
            SqueezeflowError: as `Sandbox.run`; also INVALID_PARAMETER when the message is too large. After a crash,
                a timeout or the end of memory the session is dead; after an error of the handler it lives on.

        A caller that is cancelled does not end the session, which others use too: the call runs to its end unheard.
        """
        await self._turn.acquire()
        try:
            self._calls += 1
            pieces = frames.encode({"kind": "call", "number": self._calls, "value": header}, buffers)
        except BaseException:
            self._turn.release()
            raise
        exchange = asyncio.create_task(self._exchange(self._calls, pieces, timeout))
        exchange.add_done_callback(lambda task: task.cancelled() or task.exception())  # may fail with nobody waiting
        return await asyncio.shield(exchange)

    async def _exchange(
        self, number: int, pieces: Sequence[frames.Buffer], timeout: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        try:
            if self._end is not None:
                raise _ended(self._end)
            self._child.busy = True
            async with asyncio.timeout(timeout):
                await self._child.send(pieces)
                frame = await self._child.expect("reply")
            value = frame.header.get("value")
            if frame.header.get("number") != number or not isinstance(value, dict):
                raise self._child.broken("a reply that fits no call")
            return value, list(frame.buffers)
        except TimeoutError:
            raise self._die(self._child.timed_out("a call", timeout)) from None
        except SqueezeflowError as error:
            if error.reason == "OUT_OF_MEMORY" or self._child.exited.done() or self._child.cause is not None:
                self._die(error)
            raise
        finally:
            self._child.busy = False
            self._turn.release()

    def _die(self, error: SqueezeflowError) -> SqueezeflowError:
        self._end = self._end or error
        self._child.end()
        return error

    async def close(self) -> None:
        """Ends the child; a call that is running fails. May be called again."""
        closed = SqueezeflowError("WORKER_UNAVAILABLE", "the session was closed; open it again")
        self._child.condemn(closed)
        self._end = self._end or closed
        await asyncio.shield(self._child.end())


def _ended(end: SqueezeflowError) -> SqueezeflowError:
    message = f"the session had ended before this call, open it again: {end.message}"
    return SqueezeflowError(end.reason, message, metadata=end.metadata)
