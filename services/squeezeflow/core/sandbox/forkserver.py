"""The fork server: imports the engine, runs nothing of it, and forks a child whenever the parent asks.

Run as `python -P -m squeezeflow.core.sandbox.forkserver FD`, where FD is one end of a SOCK_SEQPACKET pair.
Parent → server: `{"preload": […], "scratch": PATH}` once, then `{"fork": N, "folder": PATH}` with two file descriptors
(the child's end of its control socket, its log) and `{"kill": N}`. Server → parent: `{"ready": true}` or
`{"failed": TRACEBACK}`, then `{"forked": N, "pid": P}`, `{"fork_failed": N, "why": …}`,
`{"exited": N, "status": …, "max_rss_kib": …}`.

It is single-threaded, it only imports (an engine's first operation before a fork hangs every child), and it dies with
its parent: when the socket closes it kills all children, all that they started, and itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from squeezeflow.core.sandbox import child, memory, prctl

_MESSAGE_LIMIT = 256 << 10
_TRACEBACK_LIMIT = 32 << 10
_REAP_SECONDS = 1.0
# The parent's death, as the kernel tells it. Not SIGTERM: that one goes to whole service groups at shutdown, when the
# parent still wants to let its steps end.
_PARENT_DIED = signal.SIGUSR1


class ForkServer:
    """The loop: requests from the parent's socket, deaths of children from a pipe that SIGCHLD writes to."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._pids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._scratch = ""
        self._signals, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._own_children: set[int] = set()

    def run(self) -> NoReturn:
        """Serves until the parent has gone."""
        try:
            self._prepare()
            while self._serve_once():
                pass
        except BaseException:
            traceback.print_exc()  # into the server's log; a broken link is the same as its end
        finally:
            self._end_all()
            os._exit(0)

    def _prepare(self) -> None:
        """Imports what the parent names, tells it, and settles how this process hears of deaths."""
        prctl.signal_at_parents_death(signal.SIGKILL)  # an import that hangs must not outlive the parent
        first = json.loads(self._link.recv(_MESSAGE_LIMIT) or b"{}")
        self._scratch = first.get("scratch", "")
        gc.disable()
        try:
            for module in first.get("preload", ()):
                importlib.import_module(module)
        except BaseException:
            self._tell({"failed": traceback.format_exc()[-_TRACEBACK_LIMIT:]})
            raise
        gc.collect()
        gc.freeze()  # a collection in a child would otherwise write to, and so copy, every page of the engine
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, _PARENT_DIED):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # From here on the death of the parent must leave time to kill grandchildren: a signal that can be handled.
        prctl.signal_at_parents_death(_PARENT_DIED)
        prctl.adopt_orphans()
        self._own_children = set(memory.children(os.getpid()))
        self._tell({"ready": True})

    def _serve_once(self) -> bool:
        """Waits for one event and handles it; false when the parent has gone."""
        sources: list[Any] = [self._link, self._signals]
        readable, _, _ = select.select(sources, [], [])
        if self._signals in readable:
            heard = os.read(self._signals, 4096)
            if _PARENT_DIED in heard:
                return False
            self._reap()
        if self._link not in readable:
            return True
        text, descriptors, _, _ = socket.recv_fds(self._link, _MESSAGE_LIMIT, 2)
        if not text:
            return False
        message = json.loads(text)
        if "fork" in message:
            self._fork(message["fork"], message["folder"], descriptors)
        elif "kill" in message:
            self._kill(self._pids.get(message["kill"], 0))
        return True

    def _fork(self, number: int, folder: str, descriptors: list[int]) -> None:
        control, log = descriptors
        server = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
            if pid == 0:
                self._become_child(server, control, log, folder)
        except OSError as error:
            self._tell({"fork_failed": number, "why": str(error)})
        else:
            self._pids[number] = pid
            self._numbers[pid] = number
            self._tell({"forked": number, "pid": pid})
        os.close(control)
        os.close(log)

    def _become_child(self, server: int, control: int, log: int, folder: str) -> NoReturn:
        """Turns a fresh fork into a child: nothing of the server stays open or installed, and it never returns."""
        status = 70
        try:
            os.setsid()
            prctl.signal_at_parents_death(signal.SIGKILL)
            if os.getppid() != server:
                os._exit(status)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, _PARENT_DIED, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            self._link.close()
            os.close(self._signals)
            os.close(self._wakeup)
            gc.enable()
            child.main(socket.socket(fileno=control), log, folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _kill(self, pid: int) -> None:
        """Kills a child and its group; only ever called for one that is not reaped, so the number is still its own."""
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Reaps whatever ended, kills what it leaves behind, and tells the parent of its children."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            number = self._numbers.pop(ended.si_pid, None)
            if number is not None:
                self._kill(ended.si_pid)
                del self._pids[number]
            _, status, usage = os.wait4(ended.si_pid, 0)
            self._kill_strays()
            if number is not None:
                self._tell({"exited": number, "status": status, "max_rss_kib": usage.ru_maxrss})

    def _kill_strays(self) -> None:
        """Kills adopted orphans: what a child started outside its own group has no business after it."""
        for pid in memory.children(os.getpid()):
            if pid not in self._numbers and pid not in self._own_children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _tell(self, message: dict[str, Any]) -> None:
        self._link.sendall(json.dumps(message).encode())

    def _end_all(self) -> None:
        """Kills every child and grandchild, waits briefly for them, and removes the scratch folder."""
        for pid in list(self._numbers):
            self._kill(pid)
        self._numbers.clear()
        self._own_children.clear()
        deadline = time.monotonic() + _REAP_SECONDS
        while time.monotonic() < deadline:
            self._kill_strays()
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
            except ChildProcessError:
                break
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)


if __name__ == "__main__":
    ForkServer(socket.socket(fileno=int(sys.argv[1]))).run()
