"""All services on this machine for the time of a benchmark or test: `squeezeflow up` on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from squeezeflow.client import Client


class Stack:
    """A running `squeezeflow up` with a home of its own; a context manager.

    Args:
        folder: where the home is made; logs, store and database are below it.
        store: a store URL; the home's own folder by default.
        environ: settings of the services.
    """

    def __init__(self, folder: Path, *, store: str = "", **environ: str) -> None:
        self.home = folder / "home"
        self._environ = environ
        self._command = [sys.executable, "-m", "squeezeflow.cli", "up", "--port-base", "0"]
        self._command += ["--store", store] if store else []

    def __enter__(self) -> Stack:
        self.home.mkdir(parents=True, exist_ok=True)
        self.env = {**os.environ, "SQUEEZEFLOW_HOME": str(self.home), **self._environ}
        self.env.pop("SQUEEZEFLOW_SERVER", None)
        with (self.home / "up.log").open("w") as log:
            self.process = subprocess.Popen(
                self._command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.endpoints = self._wait()
        return self

    def _wait(self) -> dict[str, str]:
        endpoints = self.home / "endpoints.json"
        deadline = time.monotonic() + 120
        while not endpoints.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the services did not start: {(self.home / 'up.log').read_text()[-4000:]}")
            time.sleep(0.05)
        return {name: str(address) for name, address in json.loads(endpoints.read_text()).items()}

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def pid_of(self, service: str) -> int:
        """Gives the process id of a service."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[-2:] == ["-m", f"squeezeflow.{service}"]:
                    return process.pid
        raise RuntimeError(f"{service} is not running")

    def log_of(self, service: str) -> str:
        """Gives what a service has logged."""
        return (self.home / "logs" / f"{service}.log").read_text()

    def client(self, **options: str) -> Client:
        """Gives a client that knows every service's address."""
        return Client(
            self.endpoints["orchestrator"],
            converter=self.endpoints["converter"],
            inference=self.endpoints["inference"],
            **options,
        )
