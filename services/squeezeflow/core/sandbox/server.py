"""The parent's side of the fork server: starts it, asks it to fork and kill, hears of deaths.

One datagram is one message (SOCK_SEQPACKET), so nothing has to be cut apart. When the server dies, all its children
die with it (the kernel sees to that), and everyone who waits here is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import faults

_START_SECONDS = 300.0
_END_SECONDS = 5.0
_MESSAGE_LIMIT = 256 << 10

_log = logging.getLogger(__name__)


class ServerLostError(Exception):
    """The fork server died before it did what was asked."""


class Birth:
    """One fork that was asked for.

    Attributes:
        number: the child's name in messages; unlike a pid it is never used twice.
        pid: resolved when the child is there; ServerLostError or SqueezeflowError when it will not be.
        exited: resolved when the child has ended and is reaped. Never await it bare: a cancelled waiter cancels it.
    """

    def __init__(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.pid: asyncio.Future[int] = loop.create_future()
        self.exited: asyncio.Future[faults.Exit] = loop.create_future()
        self.pid.add_done_callback(lambda pid: pid.cancelled() or pid.exception())  # may fail with nobody waiting

    def fail(self, error: Exception) -> None:
        """Settles what is still open: there is, or will be, no such child."""
        if not self.pid.done():
            self.pid.set_exception(error)
        self.end(faults.Exit(None))

    def end(self, ending: faults.Exit) -> None:
        """Settles how the child ended."""
        if not self.exited.done():
            self.exited.set_result(ending)


class ForkServer:
    """A running fork server. Create it on the event loop's thread, and let that thread outlive it.

    (The kernel ties the server's life to the thread that started it, not to the process.)
    """

    def __init__(self, *, preload: Sequence[str], env: Mapping[str, str], workdir: Path | None) -> None:
        loop = asyncio.get_running_loop()
        if workdir is not None:
            workdir.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(tempfile.mkdtemp(prefix="sandbox-", dir=workdir)).absolute()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._births: dict[int, Birth] = {}
        self._numbers = 0
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._log = os.open(self.scratch / "forkserver.log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._link, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setblocking(False)
        try:
            self._process = self._spawn(remote, env)
        finally:
            remote.close()
        self._burial: asyncio.Task[None] | None = None
        loop.add_reader(self._link, self._read)
        self._post({"preload": list(preload), "scratch": str(self.scratch)})

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def _spawn(self, remote: socket.socket, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        # -P: the current folder is no place to import from. A session of its own: Ctrl-C is for the parent only.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "squeezeflow.core.sandbox.forkserver", str(remote.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[remote.fileno()],
            env={**os.environ, **env},
            start_new_session=True,
        )

    async def ready(self) -> None:
        """Returns when the preload is imported; INTERNAL with the traceback when it cannot be."""
        done, _ = await asyncio.wait({self._ready}, timeout=_START_SECONDS)
        if not done:
            log = faults.last_lines(self._log)
            message = f"the fork server did not finish its imports within {_START_SECONDS:g} s; see its log"
            raise SqueezeflowError("INTERNAL", message, metadata={"log": log})
        self._ready.result()

    def fork(self, control: socket.socket, log: int, folder: Path) -> Birth:
        """Asks for a child; takes a copy of the child's end of its control socket and of its log."""
        self._numbers += 1
        birth = Birth(self._numbers)
        if self.lost.done():
            birth.fail(ServerLostError())
            return birth
        self._births[birth.number] = birth
        self._post({"fork": birth.number, "folder": str(folder)}, [os.dup(control.fileno()), os.dup(log)])
        return birth

    def kill(self, birth: Birth) -> None:
        """Asks for a child and its process group to be killed; `birth.exited` tells when it is done."""
        if birth.number in self._births and not self.lost.done():
            self._post({"kill": birth.number})

    async def close(self) -> None:
        """Ends the server and every child, and waits for it, at most some seconds."""
        self._lose()
        if self._burial is not None:
            await asyncio.shield(self._burial)

    def _post(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        self._outbox.append((json.dumps(message).encode(), list(descriptors)))
        self._flush()

    def _flush(self) -> None:
        """Sends what waits; the rest when the socket has room again."""
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._link)
        while self._outbox:
            text, descriptors = self._outbox[0]
            try:
                socket.send_fds(self._link, [text], descriptors)
            except BlockingIOError:
                loop.add_writer(self._link, self._flush)
                return
            except OSError:
                self._lose()
                return
            self._outbox.popleft()
            _close_all(descriptors)

    def _read(self) -> None:
        try:
            text = self._link.recv(_MESSAGE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            text = b""
        if text:
            self._hear(json.loads(text))
        else:
            self._lose()

    def _hear(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._ready.set_result(None)
        elif "failed" in message:
            text = message["failed"].strip()
            last = text.splitlines()[-1] if text else "no reason given"
            self._ready.set_exception(
                SqueezeflowError(
                    "INTERNAL",
                    f"a module that every step needs cannot be imported: {last}; repair the installation",
                    metadata={"traceback": text[-faults.LOG_BYTES :]},
                )
            )
        elif "forked" in message:
            birth = self._births[message["forked"]]
            if not birth.pid.done():
                birth.pid.set_result(message["pid"])
        elif "fork_failed" in message:
            birth = self._births.pop(message["fork_failed"])
            why = f"no process could be made for the step: {message['why']}; the machine is out of memory or processes"
            birth.fail(SqueezeflowError("INTERNAL", why))
        elif "exited" in message:
            birth = self._births.pop(message["exited"])
            birth.end(faults.Exit(os.waitstatus_to_exitcode(message["status"]), message["max_rss_kib"]))

    def _lose(self) -> None:
        """Settles everything that waits for this server; done once, when its socket closes or this side closes it."""
        if self.lost.done():
            return
        self.lost.set_result(None)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._link)
        loop.remove_writer(self._link)
        self._link.close()
        for _, descriptors in self._outbox:
            _close_all(descriptors)
        self._outbox.clear()
        log = faults.last_lines(self._log)
        os.close(self._log)
        if not self._ready.done():
            message = "the fork server died while importing what every step needs; its log tells more"
            self._ready.set_exception(SqueezeflowError("INTERNAL", message, metadata={"log": log}))
        self._burial = loop.create_task(self._bury())

    async def _bury(self) -> None:
        """Waits for the server's end, makes sure of its children's, and removes what it leaves."""
        try:
            await asyncio.to_thread(self._process.wait, _END_SECONDS)
        except subprocess.TimeoutExpired:
            _log.warning("fork server %d did not end by itself and is killed", self.pid)
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        births, self._births = list(self._births.values()), {}
        for birth in births:
            # The children died with the server; what they started in their groups may not have.
            if birth.pid.done() and birth.pid.exception() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(birth.pid.result(), signal.SIGKILL)
            birth.fail(ServerLostError())
        await asyncio.to_thread(shutil.rmtree, self.scratch, ignore_errors=True)


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
