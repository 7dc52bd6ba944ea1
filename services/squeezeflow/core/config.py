"""The configuration of a service: read from the environment in `__main__`, checked once, all errors at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squeezeflow.core.errors import SqueezeflowError

PORTS: Mapping[str, int] = {
    "orchestrator": 7070,
    "converter": 7071,
    "quantizer": 7072,
    "pruner": 7073,
    "inference": 7074,
}
WORKERS = tuple(name for name in PORTS if name != "orchestrator")
ENV_PREFIX = "SQUEEZEFLOW_"


@dataclass(frozen=True)
class ServiceConfig:
    """What every service needs to know.

    Attributes:
        listen: HOST:PORT to bind; port 0 binds a free one.
        advertise: HOST:PORT that others reach this process at, told in `accepted`; empty: the bound address.
        store_url: `dir:PATH` or `s3://…`.
        workdir: scratch folder of running steps.
        max_concurrent_steps: steps that run at the same time.
        max_queued_steps: steps that wait; one more is refused as OVERLOADED.
        linger_seconds: how long a step goes on after its last watcher left.
        step_wall_seconds, step_memory_mib: limits of one step.
        checkpoint_seconds: least time between two checkpoints of a fit, inside epochs too; 0: one at every epoch's end.
        shutdown_seconds: how long running calls may take to end after SIGTERM.
        stop_on_stdin_eof: stop when standard input closes: the process that started us is gone.
        reuse_port: bind a port that the starting process holds reserved.
        log_level: of Python's logging.
    """

    service: str
    listen: str
    advertise: str
    store_url: str
    store_access_key: str
    store_secret_key: str
    workdir: Path
    max_concurrent_steps: int
    max_queued_steps: int
    linger_seconds: float
    step_wall_seconds: float
    step_memory_mib: int
    checkpoint_seconds: float
    shutdown_seconds: float
    stop_on_stdin_eof: bool
    reuse_port: bool
    log_level: str

    @property
    def step_threads(self) -> int:
        """Threads that one step may use, so that all concurrent ones together use every core."""
        return max(1, available_cores() // self.max_concurrent_steps)


def available_cores() -> int:
    """Gives the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Environment:
    """Reads typed variables and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []

    def text(self, name: str, default: str = "") -> str:
        """Gives a variable as it stands."""
        return self.environ.get(ENV_PREFIX + name, default)

    def number(self, name: str, default: float, *, low: float, high: float, kind: Callable[[str], Any] = int) -> Any:
        """Gives a variable as a number between two bounds."""
        value = self.text(name) or str(default)
        try:
            number = kind(value)
        except ValueError:
            self.problems.append(f"{ENV_PREFIX}{name}={value} is not a number")
            return default
        if not low <= number <= high:
            self.problems.append(f"{ENV_PREFIX}{name}={value} is not between {low} and {high}")
        return number

    def flag(self, name: str) -> bool:
        """Gives a variable that is 1 or 0."""
        value = self.text(name, "0")
        if value not in ("0", "1"):
            self.problems.append(f"{ENV_PREFIX}{name}={value} is neither 0 nor 1")
        return value == "1"

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        """Gives a variable that is one of a few words."""
        value = self.text(name) or default
        if value not in choices:
            self.problems.append(f"{ENV_PREFIX}{name}={value} is none of {', '.join(choices)}")
        return value

    def address(self, name: str, default: str) -> str:
        """Gives a variable that is HOST:PORT, or empty where the default is."""
        value = self.text(name) or default
        host, _, port = value.rpartition(":")
        if value and (not host or not port.isdigit() or int(port) > 65535):
            self.problems.append(f"{ENV_PREFIX}{name}={value} is not HOST:PORT")
        return value

    def check(self) -> None:
        """Raises INVALID_PARAMETER with all that was wrong."""
        if self.problems:
            raise SqueezeflowError("INVALID_PARAMETER", "; ".join(self.problems))


def load(service: str, environ: Mapping[str, str]) -> ServiceConfig:
    """Reads a service's configuration.

    Raises:
        SqueezeflowError: INVALID_PARAMETER that names every variable that is wrong.
    """
    env = Environment(environ)
    config = ServiceConfig(
        service=service,
        listen=env.address("LISTEN", f"127.0.0.1:{PORTS[service]}"),
        advertise=env.address("ADVERTISE", ""),
        store_url=env.text("STORE"),
        store_access_key=env.text("STORE_ACCESS_KEY"),
        store_secret_key=env.text("STORE_SECRET_KEY"),
        workdir=Path(env.text("WORKDIR") or Path(tempfile.gettempdir()) / f"squeezeflow-{service}-{os.getpid()}"),
        max_concurrent_steps=env.number("MAX_CONCURRENT_STEPS", max(1, available_cores() // 2), low=1, high=256),
        max_queued_steps=env.number("MAX_QUEUED_STEPS", 64, low=0, high=10000),
        linger_seconds=env.number("LINGER_SECONDS", 120, low=0, high=86400, kind=float),
        step_wall_seconds=env.number("STEP_WALL_SECONDS", 6 * 3600, low=1, high=30 * 86400, kind=float),
        step_memory_mib=env.number("STEP_MEMORY_MIB", 8192, low=256, high=1 << 20),
        checkpoint_seconds=env.number("CHECKPOINT_SECONDS", 60, low=0, high=86400, kind=float),
        shutdown_seconds=env.number("SHUTDOWN_SECONDS", 20, low=0, high=3600, kind=float),
        stop_on_stdin_eof=env.flag("STOP_ON_STDIN_EOF"),
        reuse_port=env.flag("REUSE_PORT"),
        log_level=env.choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
    )
    if not config.store_url:
        env.problems.append(f"{ENV_PREFIX}STORE is not set: give dir:PATH or s3://KEY:SECRET@HOST:PORT/BUCKET")
    env.check()
    return config
