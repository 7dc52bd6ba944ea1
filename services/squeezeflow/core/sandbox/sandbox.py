"""The sandbox: runs functions in forked children under limits, and gives back a value or a typed error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import frames
from squeezeflow.core.sandbox.process import Child
from squeezeflow.core.sandbox.server import ForkServer, ServerLostError
from squeezeflow.core.sandbox.session import Session
from squeezeflow.core.sandbox.spares import Spares

_STARTED_SECONDS = 60.0
_ATTEMPTS = 3
# An honest child sends 20 reports a second; one that floods is read no faster than twice that.
_FLOOD_BURST = 20
_FLOOD_PER_SECOND = 40
_FLOOD_PAUSE = 0.05

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Attributes:
        wall_seconds: from the moment a process takes the work to its answer (in a session: to its being open).
        memory_mib: resident memory of the child and all that it starts, pages shared with the fork server included.
    """

    wall_seconds: float
    memory_mib: int


@dataclass(frozen=True)
class ChildResult:
    """What a run gave and took.

    Attributes:
        value: the dict that the function returned.
        peak_memory_mib: the most that was resident, pages shared with the fork server included.
        seconds: wall time from handing the work out to the answer.
    """

    value: dict[str, Any]
    peak_memory_mib: float
    seconds: float


class Sandbox:
    """Runs functions in children of a fork server. Belongs to one event loop; `async with` starts and closes it.

    Args:
        preload: modules that the fork server imports; importing is all it does.
        warm: `module:function`, called without arguments in each spare child ahead of its use; empty for none.
        env: environment variables for the fork server and so for all children, on top of this process's.
        spares: how many children are kept ready.
        workdir: an existing folder for logs and the children's current folders; the system's temporary one by default.
    """

    def __init__(
        self,
        *,
        preload: Sequence[str],
        warm: str = "",
        env: Mapping[str, str] = MappingProxyType({}),
        spares: int = 1,
        workdir: Path | None = None,
    ) -> None:
        self._preload = tuple(preload)
        self._env = dict(env)
        self._workdir = workdir
        self._server: ForkServer | None = None
        self._starting = asyncio.Lock()
        self._children: set[Child] = set()
        self._spares = Spares(self._fork, count=spares, warm=warm)
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def server_pid(self) -> int | None:
        """The process of the fork server; None when there is none."""
        return self._server.pid if self._server is not None and not self._server.lost.done() else None

    async def start(self) -> None:
        """Returns when the fork server has its imports and one child has proved to be alive; spares warm later.

        Raises:
            SqueezeflowError: INTERNAL with the traceback in the metadata when an import fails.
        """
        try:
            self._spares.start(await self._fork())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Kills every child, ends the fork server and waits for that, at most some seconds. May be called again."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def run(
        self, entry: str, payload: dict[str, Any], *, limits: Limits, on_progress: Progress | None = None
    ) -> ChildResult:
        """Calls a function as `function(payload, report)` in a child that is used for nothing else.

        Args:
            entry: `module:function`; the function returns a JSON object, and may give one to `report` at any time.
            payload: JSON object.
            limits: what the child may use before it is killed.
            on_progress: called on the event loop with what was reported, about 20 times a second at most; the newest
                report always arrives.

        Raises:
            SqueezeflowError: what the function raised, as it is; INTERNAL for any other exception (metadata
                `traceback`); CHILD_CRASHED when the child died (metadata `signal` or `exit_code`, `log`,
                `peak_memory_mib`, `stage`); OUT_OF_MEMORY, TIMED_OUT; WORKER_UNAVAILABLE when the sandbox is closed.

        Cancelling it kills the child and waits for its end.
        """
        child = await self._hand_out(frames.encode({"kind": "run", "entry": entry, "payload": payload}), limits)
        try:
            began = time.monotonic()
            try:
                async with asyncio.timeout(limits.wall_seconds) as clock:
                    value = await _converse(child, on_progress)
            except TimeoutError:
                if not clock.expired():
                    raise
                raise child.timed_out("the step", limits.wall_seconds) from None
            result = ChildResult(value, child.peak_mib(), time.monotonic() - began)
        except BaseException:
            await asyncio.shield(child.end())
            raise
        child.end()  # in the background: freeing the memory of an engine takes longer than a caller should wait
        return result

    async def session(self, entry: str, payload: dict[str, Any], *, limits: Limits) -> Session:
        """Opens a session: `function(payload)` in a child gives a handler that answers every `Session.call`.

        The handler takes (header, buffers) and returns such a pair. `limits.wall_seconds` is for opening it;
        `limits.memory_mib` holds as long as it lives. Raises as `run`.
        """
        child = await self._hand_out(frames.encode({"kind": "session", "entry": entry, "payload": payload}), limits)
        try:
            async with asyncio.timeout(limits.wall_seconds):
                await child.expect("opened")
        except TimeoutError:
            error = child.timed_out("opening the session", limits.wall_seconds)
            await asyncio.shield(child.end())
            raise error from None
        except BaseException:
            await asyncio.shield(child.end())
            raise
        return Session(child)

    async def _hand_out(self, job: Sequence[frames.Buffer], limits: Limits) -> Child:
        """Gives the child that has taken the job; one that dies before is no fault of the job: another is tried."""
        for _ in range(_ATTEMPTS):
            child = await self._spares.take() or await self._fork()
            try:
                child.guard(limits.memory_mib)
                async with asyncio.timeout(_STARTED_SECONDS):
                    await child.send(job)
                    await child.expect("started")
                return child
            except TimeoutError:
                error = child.timed_out("starting the step", _STARTED_SECONDS)
            except SqueezeflowError as failure:
                error = failure
            except BaseException:
                await asyncio.shield(child.end())
                raise
            await asyncio.shield(child.end())
            if error is child.cause:
                break
        raise error

    async def _fork(self) -> Child:
        """Gives a fresh child, of a new fork server where the old one has died."""
        for _ in range(_ATTEMPTS):
            server = await self._live_server()
            try:
                return await Child.fork(server, self._children)
            except ServerLostError:
                continue
        raise SqueezeflowError("INTERNAL", "the fork server dies whenever it is started; see the log of this service")

    async def _live_server(self) -> ForkServer:
        async with self._starting:
            if self._closing is not None:
                raise _closed()
            if self._server is None or self._server.lost.done():
                if self._server is not None:
                    await self._server.close()
                self._server = ForkServer(preload=self._preload, env=self._env, workdir=self._workdir)
            server = self._server
            try:
                await server.ready()
            except SqueezeflowError:
                await asyncio.shield(server.close())
                raise
            return server

    async def _close(self) -> None:
        for child in self._children:
            child.condemn(_closed())
        await self._spares.close()
        if self._server is not None:
            await self._server.close()
        endings = [child.end() for child in self._children]
        if endings:
            await asyncio.wait(endings)


async def _converse(child: Child, on_progress: Progress | None) -> dict[str, Any]:
    """Hears a run out, to its result."""
    began, heard = time.monotonic(), 0
    while True:
        frame = await child.expect("progress", "result")
        value = frame.header.get("value")
        if not isinstance(value, dict):
            raise child.broken(f"a {frame.kind} that is no JSON object")
        if frame.kind == "result":
            return value
        child.note(value)
        if on_progress is not None:
            on_progress(value)
        heard += 1
        if heard > _FLOOD_BURST + _FLOOD_PER_SECOND * (time.monotonic() - began):
            await asyncio.sleep(_FLOOD_PAUSE)


def _closed() -> SqueezeflowError:
    return SqueezeflowError("WORKER_UNAVAILABLE", "the service is shutting down; try again, or another instance")
