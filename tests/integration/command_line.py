"""Runs the real command line over a state folder of its own, and looks at the processes that belong to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class CommandLine:
    """The command line as a user of one state folder calls it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """Starts a command; it is ended by `stop_all`."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SQUEEZEFLOW_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "squeezeflow.cli", *arguments],
            env={**inherited, "SQUEEZEFLOW_HOME": str(self.home), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is ignored where a shell runs the tests in the background, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        process = self.start(*arguments, **environ)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def stop_all(self) -> None:
        """Ends what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            process.communicate(timeout=60)


def processes_of(home: Path) -> list[int]:
    """Gives the services, and their children, whose work folder lies below the state folder."""
    mark = f"SQUEEZEFLOW_WORKDIR={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if any(variable.startswith(mark) for variable in environ.split(b"\0")):
                found.append(int(entry.name))
    return sorted(found)


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Waits for a condition; AssertionError when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
