"""One service as a process of this one: its environment, its log, its orderly end.

The service reads a pipe that only this process holds: when this process ends, however it ends, the pipe closes and the
service stops by itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from squeezeflow.cli.embedded.home import Home
from squeezeflow.core.config import ENV_PREFIX, PORTS, WORKERS
from squeezeflow.core.errors import SqueezeflowError

LOG_LIMIT = 8 << 20
_LOGS_KEPT = 3
# Running calls get this long to end; nobody else uses these services, so it is short.
_SHUTDOWN_SECONDS = "5"
# A worker that died is started again and imports TensorFlow on a machine that is busy.
_WORKER_WAIT_SECONDS = "240"
# What only the command line reads, or what differs from service to service.
_NOT_INHERITED = frozenset(
    ENV_PREFIX + name
    for name in (
        "SERVER", "HOME", "LISTEN", "ADVERTISE", "STORE", "WORKDIR", "DATABASE", "STOP_ON_STDIN_EOF", "REUSE_PORT",
        *(name.upper() for name in PORTS),
    )
)  # fmt: skip


@dataclass(frozen=True)
class ServiceSpec:
    """How one service is run."""

    name: str
    address: str
    environ: Mapping[str, str]
    log: Path


def service_specs(
    names: tuple[str, ...], addresses: Mapping[str, str], *, home: Home, store_url: str, environ: Mapping[str, str]
) -> list[ServiceSpec]:
    """Gives how to run the named services over one state folder and one store.

    Args:
        addresses: HOST:PORT of every service, also of those that are not run: the orchestrator is told all of them.
        environ: what they inherit; limits such as SQUEEZEFLOW_STEP_MEMORY_MIB pass through.
    """
    kept = {key: value for key, value in environ.items() if key not in _NOT_INHERITED}
    specs = []
    for name in names:
        own = {
            "LISTEN": addresses[name],
            "ADVERTISE": addresses[name],
            "STORE": store_url,
            "WORKDIR": str(home.work / name),
            "STOP_ON_STDIN_EOF": "1",
            "REUSE_PORT": "1",
        }
        if name == "orchestrator":
            own |= {worker.upper(): addresses[worker] for worker in WORKERS}
            own |= {"DATABASE": home.database_url, "EXECUTOR_ID": "embedded"}
            own |= {"WORKER_WAIT_SECONDS": _WORKER_WAIT_SECONDS}
        variables = {"PYTHONUNBUFFERED": "1", ENV_PREFIX + "SHUTDOWN_SECONDS": _SHUTDOWN_SECONDS, **kept}
        variables |= {ENV_PREFIX + key: value for key, value in own.items()}
        specs.append(ServiceSpec(name, addresses[name], variables, home.logs / f"{name}.log"))
    return specs


class ServiceProcess:
    """A service that runs, or ran."""

    def __init__(self, spec: ServiceSpec) -> None:
        """Starts it."""
        self.spec = spec
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        rotate(spec.log)
        with spec.log.open("ab") as log:
            self._log_start = log.tell()
            # -P: a file of the user's folder must not stand in for a module of ours. A session of its own: Ctrl-C is
            # for the command line, which then ends its services in order.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"squeezeflow.{spec.name}"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(spec.environ),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Gives its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Tells it to stop, and returns at once."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, seconds: float) -> bool:
        """Gives whether it ended within the time."""
        try:
            self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Ends it and its children now."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self, lines: int = 15) -> str:
        """Gives the last lines that this run logged."""
        with self.spec.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start if self._log_start <= size else 0, size - 16384))
            return "\n".join(log.read().decode(errors="replace").strip().splitlines()[-lines:])

    def death(self) -> SqueezeflowError:
        """Gives the error that tells of an unexpected end."""
        code, tail = self._process.poll(), self.log_tail()
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        said = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "it logged nothing")
        return SqueezeflowError(
            "WORKER_UNAVAILABLE",
            f"{self.spec.name} ended at its start with {how}: {said[:300]} (all of it: {self.spec.log})",
            metadata={"service": self.spec.name, "log": tail},
        )


def stop_all(processes: list[ServiceProcess], *, seconds: float) -> None:
    """Ends processes in order, all at the same time; those that do not end in time are killed. None is left running."""
    try:
        for process in processes:
            process.ask_to_stop()
        deadline = time.monotonic() + seconds
        for process in processes:
            process.wait(deadline - time.monotonic())
    finally:
        for process in processes:
            process.kill()


def rotate(log: Path) -> None:
    """Moves a log that has grown large to `.1`, the older ones up; the last one goes."""
    if not log.exists() or log.stat().st_size < LOG_LIMIT:
        return
    _shift(log)
    log.replace(log.with_name(f"{log.name}.1"))


def rotate_open(log: Path) -> None:
    """Does the same under a process that has the log open for appending: copies, then empties it."""
    if log.exists() and log.stat().st_size >= LOG_LIMIT:
        _shift(log)
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def _shift(log: Path) -> None:
    for number in range(_LOGS_KEPT - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number + 1}"))
