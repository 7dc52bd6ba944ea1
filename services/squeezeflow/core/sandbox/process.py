"""The parent's handle of one child: talks to it, watches its memory and log, ends it, tells why it died."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
from collections.abc import Sequence
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import faults, frames, memory
from squeezeflow.core.sandbox.server import ForkServer, ServerLostError

_ALIVE_SECONDS = 60.0
_END_SECONDS = 10.0
# Between a process's closing its files and its being reaped.
_DYING_SECONDS = 5.0
_WATCH_BUSY = 0.1
_WATCH_IDLE = 1.0
# A step that prints for ever must not fill the disk; only the end of a log is ever read.
_LOG_LIMIT = 16 << 20
_STAGE_LIMIT = 200
_FOLDER_NUMBERS = itertools.count(1)


class Child:
    """A forked process that has done nothing yet, or does what it was told.

    Attributes:
        cause: why the parent killed it, where it did.
        busy: the memory of a busy child is looked at ten times as often as that of an idle one.
        exited: resolved when the process is reaped. Never await it bare: a cancelled waiter cancels it.
    """

    def __init__(self, server: ForkServer, register: set[Child]) -> None:
        self.busy = True
        self.pid = 0
        self._server = server
        self._register = register
        self._stage = ""
        self._memory_limit_mib = 0
        self._peak_kib = 0
        self.cause: SqueezeflowError | None = None
        self._watch: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._talking = asyncio.Lock()
        self._control, remote = socket.socketpair()
        self._control.setblocking(False)
        self._folder = server.scratch / f"child-{next(_FOLDER_NUMBERS)}"
        self._log_path = self._folder.with_suffix(".log")
        self._log_tail: str | None = None
        with remote:
            self._folder.mkdir(mode=0o700)
            self._log = os.open(self._log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._birth = server.fork(remote, self._log, self._folder)
        self.exited = self._birth.exited
        self.exited.add_done_callback(lambda _: self._hang_up())
        register.add(self)

    @classmethod
    async def fork(cls, server: ForkServer, register: set[Child]) -> Child:
        """Forks a child that has proved to be alive; it is in `register` until it has ended.

        Raises:
            ServerLostError: the fork server died meanwhile.
            SqueezeflowError: no process can be made.
        """
        child = cls(server, register)
        try:
            child.pid = await asyncio.shield(child._birth.pid)
            async with asyncio.timeout(_ALIVE_SECONDS):
                await child.expect("alive")
        except SqueezeflowError:
            child.end()
            if server.lost.done():
                raise ServerLostError from None
            raise
        except BaseException:
            child.end()
            raise
        return child

    async def send(self, pieces: Sequence[frames.Buffer]) -> None:
        """Sends what `frames.encode` gave; a child that is dead is found out by the next `expect`."""
        with contextlib.suppress(ConnectionError):
            async with self._talking:
                await frames.send_pieces(self._control, pieces)

    async def expect(self, *kinds: str) -> frames.Frame:
        """Gives the child's next frame, which must be of one of these kinds; raises the error it tells, or died of."""
        try:
            async with self._talking:
                frame = await frames.receive_async(self._control)
        except (EOFError, ConnectionError):
            raise await self.fault() from None
        except frames.FrameError as error:
            raise self.broken(str(error)) from None
        if frame.kind in kinds:
            return frame
        if frame.kind in ("error", "raised"):
            raise faults.raised(frame.header)
        if frame.kind == "out_of_memory":
            raise self._out_of_memory(frame.header)
        raise self.broken(f"a frame of kind '{frame.kind[:40]}'")

    def note(self, progress: dict[str, Any]) -> None:
        """Remembers what the step says it does, for the error it may end with."""
        stage = progress.get("stage")
        if isinstance(stage, str):
            self._stage = stage[:_STAGE_LIMIT]

    def guard(self, memory_mib: int) -> None:
        """From now on kills the child when it holds more memory than that, together with all it started."""
        self._memory_limit_mib = memory_mib
        self._watch = asyncio.create_task(self._watch_over())

    async def _watch_over(self) -> None:
        while not self.exited.done():
            resident = memory.resident_kib(self.pid)
            self._peak_kib = max(self._peak_kib, resident)
            if resident > self._memory_limit_mib * 1024:
                self.condemn(self._out_of_memory())
                return
            if os.fstat(self._log).st_size > _LOG_LIMIT:
                os.ftruncate(self._log, 0)
            await asyncio.wait({self.exited}, timeout=_WATCH_BUSY if self.busy else _WATCH_IDLE)

    def peak_mib(self) -> float:
        """The most memory it has held so far, in MiB, as seen; exact for the process itself while it lives."""
        ending = self.exited.result().max_rss_kib if self.exited.done() else memory.high_water_kib(self.pid)
        self._peak_kib = max(self._peak_kib, ending)
        return self._peak_kib / 1024

    def condemn(self, cause: SqueezeflowError) -> None:
        """Kills the child; whoever talks to it gets this error. The first cause stands."""
        if self.cause is None and not self.exited.done():
            self.cause = cause
        self._server.kill(self._birth)

    def timed_out(self, what: str, seconds: float) -> SqueezeflowError:
        """Kills the child for taking too long and gives the error to raise."""
        error = faults.timed_out(what, seconds, stage=self._stage, peak_mib=self.peak_mib())
        self.condemn(error)
        return self.cause or error

    async def fault(self) -> SqueezeflowError:
        """Gives the reason why the child does not answer any more; waits for its end where that is still to come."""
        await asyncio.wait({self.exited}, timeout=_END_SECONDS if self.cause else _DYING_SECONDS)
        if self.cause is not None:
            return self.cause
        if not self.exited.done():
            return self.broken("it closed its connection and lives on")
        return faults.crashed(
            self.exited.result(),
            limit_mib=self._memory_limit_mib,
            peak_mib=self.peak_mib(),
            stage=self._stage,
            log=self._last_lines(),
        )

    def end(self) -> asyncio.Task[None]:
        """Kills the child and frees what it holds; await the task to know it reaped. May be called again."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        return self._ending

    async def _end(self) -> None:
        self._server.kill(self._birth)
        await asyncio.wait({self.exited}, timeout=_END_SECONDS)
        if not self.exited.done():
            await self._server.close()  # it does not even kill: no child of it can be trusted to end otherwise
        if self._watch is not None:
            await asyncio.wait({self._watch})
        async with self._talking:  # a reader wakes up by the hang-up; closing under it would leave it waiting for ever
            self._control.close()
        self._log_tail = faults.last_lines(self._log)
        os.close(self._log)
        self._log_path.unlink(missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        self._register.discard(self)

    def _last_lines(self) -> str:
        return faults.last_lines(self._log) if self._log_tail is None else self._log_tail

    def _hang_up(self) -> None:
        """Ends the conversation even where something else still holds the child's end of it."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def broken(self, why: str) -> SqueezeflowError:
        """Kills the child for not keeping to the protocol and gives the error to raise."""
        error = faults.protocol_broken(why, log=self._last_lines())
        self.condemn(error)
        return error

    def _out_of_memory(self, header: dict[str, Any] | None = None) -> SqueezeflowError:
        return faults.out_of_memory(
            limit_mib=self._memory_limit_mib,
            peak_mib=self.peak_mib(),
            stage=self._stage,
            log=self._last_lines(),
            cause=header,
        )
