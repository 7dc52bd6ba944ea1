"""The state folder of one user on one machine: who runs services in it, and where they answer.

One process at a time may run an orchestrator over it; a file lock that ends with the process says who. A process that
runs all services writes `endpoints.json` beside it, and whoever comes later uses those.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from squeezeflow.core.errors import SqueezeflowError

HOME_VARIABLE = "SQUEEZEFLOW_HOME"


@dataclass(frozen=True)
class Endpoints:
    """Where the services of a running `up` answer: HOST:PORT by service name, and the process that runs them."""

    addresses: Mapping[str, str]
    pid: int

    def to_json(self) -> str:
        """Gives the content of `endpoints.json`."""
        return json.dumps({**self.addresses, "pid": self.pid}, indent=2) + "\n"


class HomeLock:
    """A lock that is held from its making until its context ends, or this process does."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path, timeout=0)
        self._lock.acquire()

    def __enter__(self) -> HomeLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives it up."""
        self._lock.release()


@dataclass(frozen=True)
class Home:
    """Paths below the state folder."""

    root: Path

    @property
    def endpoints(self) -> Path:
        """Where a running `up` says where its services are."""
        return self.root / "endpoints.json"

    @property
    def logs(self) -> Path:
        """One file a service."""
        return self.root / "logs"

    @property
    def work(self) -> Path:
        """Scratch folders of running steps; nothing in it outlives the process that holds the lock."""
        return self.root / "work"

    @property
    def store_url(self) -> str:
        """The store that is used where none is named."""
        return f"dir:{self.root / 'store'}"

    @property
    def database_url(self) -> str:
        """The orchestrator's database."""
        return f"sqlite:///{self.root / 'jobs.sqlite'}"

    def lock(self) -> HomeLock:
        """Takes the lock that the one orchestrator of this folder holds; raises Timeout at once where it is taken."""
        self.root.mkdir(parents=True, exist_ok=True)
        return HomeLock(self.root / "lock")


def home_of(environ: Mapping[str, str]) -> Home:
    """Gives the state folder: SQUEEZEFLOW_HOME, or the platform's folder for a user's data."""
    if named := environ.get(HOME_VARIABLE):
        return Home(Path(named).expanduser().absolute())
    import platformdirs

    return Home(Path(platformdirs.user_data_dir("squeezeflow", appauthor=False)))


def running(home: Home) -> Endpoints | None:
    """Gives the endpoints of a running `up`; None where there is none, or its process is gone."""
    found = _read(home.endpoints)
    if found is None or not _alive(found.pid):
        return None
    if found.pid != os.getpid():
        # The number of a process that was killed may be another's by now: only a living one holds the lock.
        try:
            home.lock().release()
        except Timeout:
            return found
        return None
    return found


def take(home: Home, *, on_wait: Callable[[str], None]) -> HomeLock | Endpoints:
    """Gives the lock of the folder, or the endpoints of whoever runs all services in it.

    While another process holds the lock without endpoints (an embedded job, an `up` that is starting) this waits.

    Args:
        on_wait: told once what is waited for.

    Raises:
        SqueezeflowError: INVALID_PARAMETER when the folder cannot be written.
    """
    # Whoever looks whether the holder lives takes the lock for an instant: that is not worth a word.
    tell_at = time.monotonic() + 0.5
    while True:
        if (endpoints := running(home)) is not None:
            return endpoints
        try:
            return home.lock()
        except Timeout:
            if time.monotonic() >= tell_at:
                on_wait(f"another squeezeflow is at work in {home.root}: waiting for it")
                tell_at = math.inf
            time.sleep(0.1)
        except OSError as error:
            raise SqueezeflowError(
                "INVALID_PARAMETER", f"{home.root} cannot be written ({error.strerror}): set {HOME_VARIABLE}"
            ) from error


def publish(home: Home, endpoints: Endpoints) -> None:
    """Writes `endpoints.json`, whole or not at all."""
    part = home.endpoints.with_suffix(".part")
    part.write_text(endpoints.to_json(), encoding="utf-8")
    part.replace(home.endpoints)


def withdraw(home: Home) -> None:
    """Removes `endpoints.json`."""
    home.endpoints.unlink(missing_ok=True)


def _read(path: Path) -> Endpoints | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pid = content.pop("pid")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(pid, int) or not all(isinstance(value, str) for value in content.values()):
        return None
    return Endpoints(content, pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
