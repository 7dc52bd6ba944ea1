"""What a forked child does: settle in, then warm up or run what its parent says, and answer.

A child is asked for at most one warm-up, then for one run or one session. It never decides when it ends: after its
answer it waits for the parent to read its figures from /proc and to kill it, so no exit handler of an engine, which
may hang or crash, ever runs.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import frames

REPORT_INTERVAL = 0.05
_TRACEBACK_LINES = 30
_TEXT_LIMIT = 2000

Handler = Callable[[dict[str, Any], list[bytes]], tuple[dict[str, Any], Sequence[frames.Buffer]]]


class Reporter:
    """Sends progress, at most one report every `REPORT_INTERVAL`; what is held back goes out when the time is up.

    The newest report always arrives, even when the step then computes for minutes in silence or ends at once.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._sent = 0.0
        self._held: dict[str, Any] | None = None
        self._timer: threading.Timer | None = None

    def __call__(self, value: dict[str, Any]) -> None:
        """Takes a JSON object; cheap enough to be called for every batch."""
        with self._lock:
            self._held = dict(value)
            wait = self._sent + REPORT_INTERVAL - time.monotonic()
            if wait <= 0:
                self._send_held()
            elif self._timer is None:
                self._timer = threading.Timer(wait, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Sends the report that is held back, if there is one."""
        with self._lock:
            self._send_held()

    def _send_held(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held is not None:
            value, self._held = self._held, None
            self._sent = time.monotonic()
            frames.send(self._control, {"kind": "progress", "value": value})


def main(control: socket.socket, log: int, folder: str) -> None:
    """Serves the parent over `control` until it closes it; runs right after the fork."""
    _settle(log, folder)
    control.set_inheritable(False)
    try:
        frames.send(control, {"kind": "alive"})
        while True:
            _serve(control, frames.receive(control))
    except (EOFError, ConnectionError):
        return  # the parent has gone, or needs no more


def _settle(log: int, folder: str) -> None:
    """Makes the process one that can crash well: a log, stack dumps, no core files, first in line when memory ends."""
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    sys.stdout = open(1, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115 - lives as long as we do
    sys.stderr = open(2, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115
    faulthandler.enable(2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent, which then ends us
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    # What a library leaves behind goes with this folder, also when the process is killed.
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    except OSError as error:
        print(f"the kernel's out-of-memory score stays as it is: {error}", file=sys.stderr)


def _serve(control: socket.socket, frame: frames.Frame) -> None:
    """Does what one frame asks for and answers.

    What the asked-for code raises is caught where it is called: its EOFError must not look like the parent's end.
    """
    if frame.kind == "warm":
        _warm(control, frame.header)
        return
    frames.send(control, {"kind": "started"})
    if frame.kind == "session":
        _open_session(control, frame.header)
    else:
        _run(control, frame.header)


def _warm(control: socket.socket, header: dict[str, Any]) -> None:
    answer: dict[str, Any] = {"kind": "warmed"}
    try:
        _resolve(header["entry"])()
    except BaseException as error:
        answer = _failure(error)
    frames.send(control, answer)


def _run(control: socket.socket, header: dict[str, Any]) -> None:
    reporter = Reporter(control)
    try:
        value = _resolve(header["entry"])(header["payload"], reporter)
        if not isinstance(value, dict):
            raise TypeError(f"{header['entry']} gave {type(value).__name__}, not a dict")
        answer = frames.encode({"kind": "result", "value": value})
    except BaseException as error:
        answer = frames.encode(_failure(error))
    reporter.flush()
    _send_all(control, answer)


def _open_session(control: socket.socket, header: dict[str, Any]) -> None:
    try:
        handler: Handler = _resolve(header["entry"])(header["payload"])
    except BaseException as error:
        frames.send(control, _failure(error))
        return
    frames.send(control, {"kind": "opened"})
    while True:
        _send_all(control, _call(handler, frames.receive(control)))


def _call(handler: Handler, frame: frames.Frame) -> list[frames.Buffer]:
    """Gives the answer to one call of a session, numbered as the call; a call that fails does not end the session."""
    number = frame.header["number"]
    try:
        header, buffers = handler(frame.header["value"], list(frame.buffers))
        return frames.encode({"kind": "reply", "number": number, "value": header}, buffers)
    except BaseException as error:
        return frames.encode({**_failure(error), "number": number})


def _send_all(control: socket.socket, pieces: Sequence[frames.Buffer]) -> None:
    for piece in pieces:
        control.sendall(piece)


def _resolve(entry: str) -> Callable[..., Any]:
    """Gives the function that `module:function` names."""
    module, _, name = entry.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _failure(error: BaseException) -> dict[str, Any]:
    """Gives the frame that carries an exception to the parent."""
    if isinstance(error, SqueezeflowError):
        return {
            "kind": "error",
            "reason": error.reason,
            "message": error.message,
            "metadata": error.metadata,
            "fields": list(error.fields),
        }
    lines = "".join(traceback.format_exception(error)).splitlines()[-_TRACEBACK_LINES:]
    return {
        "kind": "out_of_memory" if isinstance(error, MemoryError) else "raised",
        "type": type(error).__name__,
        "text": str(error)[:_TEXT_LIMIT],
        "traceback": "\n".join(line[:_TEXT_LIMIT] for line in lines),
    }
