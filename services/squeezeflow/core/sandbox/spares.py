"""Children forked ahead of need and warmed, each used once: what a step would wait for is done before it comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import frames
from squeezeflow.core.sandbox.process import Child

# A replacement is forked at once, but warming it costs about a second of CPU, which on a small machine the step that
# has just been handed out would miss: it warms when that step has ended, or after this long, since steps that run
# longer do not notice.
HEAD_START_SECONDS = 2.0
_WARM_SECONDS = 120.0
# How long a step waits for a spare that warms; one that takes longer hangs, or the machine does.
_PATIENCE_SECONDS = 10.0
_BACKOFF_SECONDS = 0.5
_BACKOFF_LIMIT = 60.0

_log = logging.getLogger(__name__)


class Spare:
    """A child in waiting: cold, then warming, then ready, until it is taken or dies."""

    def __init__(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        self.child = child
        self.warming = False
        self.ready: asyncio.Future[bool] = loop.create_future()
        self.taken: asyncio.Future[bool] = loop.create_future()
        child.exited.add_done_callback(lambda _: self.withdraw(taken=False))

    def withdraw(self, *, taken: bool) -> None:
        """Settles, once, whether it was taken or lost."""
        if not self.taken.done():
            self.taken.set_result(taken)

    @property
    def rank(self) -> int:
        """What to take first: one that is ready, else one that warms (any child would have to), else a cold one."""
        if self.ready.done():
            return 0
        return 1 if self.warming else 2


class Spares:
    """Keeps `count` spares; each place has a task that forks, warms, offers, and starts over when its spare is gone."""

    def __init__(self, fork: Callable[[], Awaitable[Child]], *, count: int, warm: str) -> None:
        self._fork = fork
        self._count = count
        self._warm = warm
        self._offered: list[Spare] = []
        self._places: list[asyncio.Task[None]] = []

    def start(self, first: Child) -> None:
        """Starts keeping spares; `first`, a child just forked, is the first of them."""
        if self._count == 0:
            first.end()
            return
        self._places = [asyncio.create_task(self._keep(first if n == 0 else None)) for n in range(self._count)]

    async def take(self) -> Child | None:
        """Gives the best spare, which then belongs to the caller; none when there is none, or its warm-up failed."""
        usable = [spare for spare in self._offered if not spare.taken.done()]
        if not usable:
            return None
        spare = min(usable, key=lambda spare: spare.rank)
        spare.withdraw(taken=True)
        if spare.warming and not spare.ready.done():
            try:
                await asyncio.wait({spare.ready}, timeout=_PATIENCE_SECONDS)
            except asyncio.CancelledError:
                spare.child.end()
                raise
            if not spare.ready.done() or not spare.ready.result():
                spare.child.end()
                return None
        return spare.child

    async def close(self) -> None:
        """Stops keeping spares; the children themselves are ended by whoever owns them all."""
        for place in self._places:
            place.cancel()
        if self._places:
            await asyncio.wait(self._places)

    async def _keep(self, first: Child | None) -> None:
        failures = 0
        previous: Child | None = None
        while True:
            child, first = first, None
            try:
                child = child or await self._fork()
                await self._offer(Spare(child), previous)
                failures, previous = 0, child
                continue
            except SqueezeflowError as error:
                failures += 1
                delay = min(_BACKOFF_SECONDS * 2 ** min(failures - 1, 10), _BACKOFF_LIMIT)
                details = error.metadata.get("traceback") or error.metadata.get("log", "")
                _log.warning("no spare child, next try in %g s: %s\n%s", delay, error, details)
            except Exception:
                failures += 1
                delay = _BACKOFF_LIMIT
                _log.exception("no spare child, next try in %g s", delay)
            previous = None
            if child is not None:
                child.end()
            await asyncio.sleep(delay)

    async def _offer(self, spare: Spare, previous: Child | None) -> None:
        """Returns when the spare has been taken; raises why it is of no use when its warm-up fails or it dies idle."""
        self._offered.append(spare)
        try:
            if self._warm and previous is not None:
                both: set[asyncio.Future[Any]] = {previous.exited, spare.taken}
                await asyncio.wait(both, timeout=HEAD_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._warm and not spare.taken.done():
                spare.warming = True
                await self._warm_up(spare.child)
            spare.ready.set_result(True)
            if not await asyncio.shield(spare.taken):
                raise await spare.child.fault()
        finally:
            if not spare.ready.done():
                spare.ready.set_result(False)
            spare.withdraw(taken=False)
            self._offered.remove(spare)

    async def _warm_up(self, child: Child) -> None:
        await child.send(frames.encode({"kind": "warm", "entry": self._warm}))
        try:
            async with asyncio.timeout(_WARM_SECONDS):
                await child.expect("warmed")
        except TimeoutError:
            raise child.timed_out("the warm-up of a spare child", _WARM_SECONDS) from None
