"""Runs services beside this process: starts them all at once, says when they serve, brings back what dies, ends them.

A service that dies before it ever served is a failure of the whole; one that dies later is started again at the same
address, sooner at first, later when it keeps dying.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from squeezeflow.cli.embedded import ports, processes
from squeezeflow.cli.embedded.home import Endpoints, Home
from squeezeflow.cli.embedded.processes import ServiceProcess, ServiceSpec
from squeezeflow.core.config import PORTS
from squeezeflow.core.errors import SqueezeflowError

if TYPE_CHECKING:
    from squeezeflow.client.health import HealthWatch

# Those that take longest to start are started first.
START_ORDER = ("converter", "quantizer", "pruner", "orchestrator", "inference")
# TensorFlow's import takes 6 s on an idle machine, and may share this one with much else.
START_SECONDS = 240.0
STOP_SECONDS = 12.0
_FIRST_BACKOFF = 0.5
_LAST_BACKOFF = 30.0
# A service that served this long is forgiven its earlier deaths.
_FORGIVEN_AFTER = 60.0


@dataclass
class _Run:
    """One service over all its processes."""

    spec: ServiceSpec
    process: ServiceProcess
    serving: bool = False
    ever_served: bool = False
    serving_since: float = math.inf
    deaths: int = 0
    start_again_at: float | None = None
    watch: HealthWatch | None = None


class Services:
    """Services that run as long as this context does.

    Args:
        names: which ones.
        store_url: where all of them keep artifacts; empty: in the state folder.
        port_plan: port of every service, 0 for a free one; all free where None.
        environ: what the processes inherit.
        tell: told, from another thread, of every death and restart.
    """

    def __init__(
        self,
        home: Home,
        names: Iterable[str],
        *,
        environ: Mapping[str, str],
        store_url: str = "",
        port_plan: Mapping[str, int] | None = None,
        tell: Callable[[str], None],
    ) -> None:
        wanted = frozenset(names)
        self.names = tuple(name for name in START_ORDER if name in wanted)
        self.failure: SqueezeflowError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._home = home
        self._tell = tell
        self._reserved = ports.reserve(port_plan or ports.port_plan(0))
        addresses = {name: reservation.address for name, reservation in self._reserved.items()}
        self.addresses = {name: addresses[name] for name in PORTS if name in wanted}
        self._specs = processes.service_specs(
            self.names, addresses, home=home, store_url=store_url or home.store_url, environ=environ
        )
        self._runs: dict[str, _Run] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._guardian = threading.Thread(target=self._guard, name="supervisor", daemon=True)

    def __enter__(self) -> Services:
        # Steps that were running when an earlier holder of the lock was killed left their scratch folders.
        shutil.rmtree(self._home.work, ignore_errors=True)
        try:
            for spec in self._specs:
                self._runs[spec.name] = _Run(spec, ServiceProcess(spec))
        except BaseException:
            self._end()
            raise
        for run in self._runs.values():
            threading.Thread(target=self._follow, args=[run], name=f"health of {run.spec.name}", daemon=True).start()
        self._guardian.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    @property
    def endpoints(self) -> Endpoints:
        """What `endpoints.json` says of them."""
        return Endpoints(self.addresses, os.getpid())

    def wait_serving(self, names: Iterable[str], *, seconds: float = START_SECONDS) -> None:
        """Returns when the named services take calls.

        Raises:
            SqueezeflowError: WORKER_UNAVAILABLE when one died at its start, or takes too long.
        """
        wanted = frozenset(names)
        deadline = time.monotonic() + seconds
        with self._changed:
            while missing := [name for name in wanted if not self._runs[name].serving]:
                if self.failure is not None:
                    raise self.failure
                if time.monotonic() >= deadline:
                    log = self._runs[missing[0]].spec.log
                    raise SqueezeflowError(
                        "WORKER_UNAVAILABLE", f"{missing[0]} did not serve within {seconds:.0f} s: see {log}"
                    )
                # A short wait: Ctrl-C is seen between two of them.
                self._changed.wait(0.2)

    def serving(self, name: str) -> bool:
        """Gives whether a service took calls when it was last asked."""
        return self._runs[name].serving

    def _guard(self) -> None:
        """Sees processes end, starts them again, and keeps their logs small."""
        turn = 0
        while not self._stopping.wait(0.1):
            turn += 1
            for run in self._runs.values():
                if run.start_again_at is not None:
                    if time.monotonic() >= run.start_again_at:
                        self._start_again(run)
                elif run.process.exit_code() is not None:
                    self._died(run)
                if turn % 100 == 0:
                    processes.rotate_open(run.spec.log)

    def _follow(self, run: _Run) -> None:
        """Keeps what the service says of its own health."""
        while not self._stopping.wait(0.02 if not run.ever_served else 0.1):
            if not _listens(run.spec.address):
                continue
            from squeezeflow.client.health import HealthWatch

            run.watch = HealthWatch(run.spec.address)
            if self._stopping.is_set():
                run.watch.close()
            for serving in run.watch.states():
                self._said(run, serving)
            run.watch.close()
            self._said(run, False)

    def _said(self, run: _Run, serving: bool) -> None:
        with self._changed:
            if serving and not run.serving:
                run.serving_since = time.monotonic()
                run.ever_served = True
            back = serving and not run.serving and run.deaths > 0
            run.serving = serving
            self._changed.notify_all()
        if back:
            self._tell(f"{run.spec.name} is back at {run.spec.address}")

    def _start_again(self, run: _Run) -> None:
        try:
            run.process = ServiceProcess(run.spec)
        except OSError as error:
            run.start_again_at = time.monotonic() + _LAST_BACKOFF
            self._tell(f"{run.spec.name} cannot be started ({error}): trying again in {_LAST_BACKOFF:g} s")
        else:
            run.start_again_at = None

    def _died(self, run: _Run) -> None:
        if not run.ever_served:
            with self._changed:
                first = self.failure is None
                self.failure = self.failure or run.process.death()
                self._changed.notify_all()
            if first:
                self.on_failure()
            return
        if time.monotonic() - run.serving_since > _FORGIVEN_AFTER:
            run.deaths = 0
        code = run.process.exit_code()
        pause = min(_FIRST_BACKOFF * 2**run.deaths, _LAST_BACKOFF)
        run.serving, run.serving_since = False, math.inf
        run.deaths, run.start_again_at = run.deaths + 1, time.monotonic() + pause
        self._tell(f"{run.spec.name} ended with {code}: starting it again in {pause:g} s (its log: {run.spec.log})")

    def _end(self) -> None:
        self._stopping.set()
        try:
            if self._guardian.is_alive():
                self._guardian.join()
            # A service waits for calls that run, and a watch runs as long as it is watched.
            for run in self._runs.values():
                if run.watch is not None:
                    run.watch.close()
            processes.stop_all([run.process for run in self._runs.values()], seconds=STOP_SECONDS)
        finally:
            for reservation in self._reserved.values():
                reservation.close()
            shutil.rmtree(self._home.work, ignore_errors=True)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=0.5):
        return True
    return False
