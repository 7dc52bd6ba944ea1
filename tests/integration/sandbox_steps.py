"""What the sandbox's tests run in children: functions that behave, and functions that do not."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import frames

Report = Callable[[dict[str, Any]], None]

state: dict[str, Any] = {}


def leave_temporary_files(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Leaves temporary files behind, its own and those of a program that it runs."""
    program = [sys.executable, "-c", "import tempfile; print(tempfile.mkdtemp())"]
    theirs = subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip()
    return {"left": [tempfile.mkdtemp(), theirs]}


def who(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Tells what this process is, and what earlier work left in it."""
    before = dict(state)
    state["ran"] = True
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "folder": os.getcwd(),
        "state": before,
        "payload": payload,
        "flag": os.environ.get("SANDBOX_FLAG", ""),
        "interrupts_ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "terminates": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "open": sorted(
            os.readlink(f"/proc/self/fd/{n}").split(":")[0] for n in os.listdir("/proc/self/fd") if _open(n)
        ),
        "score": Path("/proc/self/oom_score_adj").read_text().strip(),
    }


def _open(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")


def report_many(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    until = time.monotonic() + payload["seconds"]
    count = 0
    while time.monotonic() < until:
        count += 1
        report({"count": count})
    if payload.get("then_silent"):
        time.sleep(payload["then_silent"])
    return {"count": count}


def abort(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    report({"stage": "convert"})
    print("last words\x1b[31m of the engine\x1b[0m\x07")
    os.abort()


def segfault(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    return {"never": ctypes.string_at(0)}


def leave(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    print("leaving early", file=sys.stderr)
    os._exit(3)


def kill_self(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hang(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Starts a grandchild, tells who is there, and never returns: in Python, in C, or in C with the GIL held."""
    started = subprocess.Popen(["sleep", "600"], start_new_session=payload.get("new_session", False))
    report({"stage": "hang", "pid": os.getpid(), "server": os.getppid(), "grandchild": started.pid})
    if payload["how"] == "python":
        while True:
            pass
    if payload["how"] == "c":
        ctypes.CDLL(None).sleep(600)
    time.sleep(0.2)
    ctypes.PyDLL(None).sleep(600)
    return {}


def leave_orphan(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Leaves a process of another session behind, whose own parent has gone."""
    script = "import os, subprocess; print(subprocess.Popen(['sleep', '600'], stdout=2).pid)"
    told = subprocess.run([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE, check=True)
    return {"orphan": int(told.stdout)}


def eat_memory(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    report({"stage": "calibrate"})
    hoard = []
    while True:
        hoard.append(b"x" * (8 << 20))
        time.sleep(0.01)


def eat_memory_elsewhere(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    script = "import time; hoard = b'x' * (300 << 20); time.sleep(600)"
    subprocess.run([sys.executable, "-c", script], check=False)
    return {}


def ask_too_much_of_python(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    return {"size": len(bytearray(1 << 60))}


def ask_too_much_of_the_engine(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    new = ctypes.CDLL("libstdc++.so.6")["_Znwm"]
    new.argtypes = [ctypes.c_size_t]
    new(1 << 60)
    return {}


def hold_memory(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    hoard = b"x" * (payload["mib"] << 20)
    return {"size": len(hoard)}


def refuse(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    raise SqueezeflowError(
        "DATA_MISMATCH", "array 'x' is wrong", metadata={"array": "x", "index": 3}, fields=[("data", "wrong")]
    )


def fail(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    raise {"value": ValueError, "eof": EOFError, "pipe": BrokenPipeError, "exit": SystemExit}[payload["how"]]("no good")


def give_list(payload: dict[str, Any], report: Report) -> Any:
    return [1]


def give_object(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    return {"value": object()}


def shout(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    line = "x" * 1023 + "\n"
    for _ in range(payload["mib"] << 10):
        sys.stdout.write(line)
    time.sleep(0.5)
    os.abort()


def talk_nonsense(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Finds the socket to the parent, as a hijacked child would, and writes to it or closes it."""
    for number in range(3, 64):
        try:
            control = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        if payload["how"] == "close":
            control.shutdown(socket.SHUT_RDWR)
        else:
            control.sendall(bytes.fromhex(payload["how"]))
    time.sleep(600)
    return {}


def flood(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Sends progress past the reporter, as fast as the socket takes it."""
    until = time.monotonic() + payload["seconds"]
    for number in range(3, 64):
        try:
            control = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        while time.monotonic() < until:
            frames.send(control, {"kind": "progress", "value": {}})
    return {}


def warm() -> None:
    time.sleep(0.3)
    state["warm"] = True


def warm_badly() -> None:
    with open(os.environ["WARM_COUNT"], "a") as count:
        count.write("x")
    raise RuntimeError("cannot warm")


def warm_for_ever() -> None:
    time.sleep(600)


def open_counter(
    payload: dict[str, Any],
) -> Callable[[dict[str, Any], list[bytes]], tuple[dict[str, Any], list[bytes]]]:
    """A session that counts its calls, and misbehaves where the call says so."""
    if payload.get("refuse"):
        raise SqueezeflowError("MALFORMED_MODEL", "no model")
    if payload.get("hang"):
        time.sleep(600)
    calls = 0
    running = threading.Lock()

    def handle(header: dict[str, Any], buffers: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        nonlocal calls
        if not running.acquire(blocking=False):
            raise AssertionError("two calls at once")
        try:
            calls += 1
            time.sleep(header.get("seconds", 0))
            if header.get("refuse"):
                raise SqueezeflowError("DATA_MISMATCH", "array 'x' is wrong")
            if header.get("fail"):
                raise ValueError("no good")
            if header.get("abort"):
                os.abort()
            if header.get("eat"):
                state["hoard"] = b"x" * (header["eat"] << 20)
                time.sleep(5)
            if header.get("ask"):
                state["hoard"] = bytearray(1 << 60)
            return {"calls": calls, "pid": os.getpid(), "start": payload.get("start")}, [b[::-1] for b in buffers]
        finally:
            running.release()

    return handle


def first_tensorflow_operation(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    began = time.perf_counter()
    import tensorflow as tf

    return {"value": float(tf.constant(1.0) + 1), "seconds": time.perf_counter() - began}
