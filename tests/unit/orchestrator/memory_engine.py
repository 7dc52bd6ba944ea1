"""An engine in memory: keeps what slots gave, and can be told to die in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from squeezeflow.orchestrator.engine import Body, Run, RunCancelled, RunState
from squeezeflow.orchestrator.record import Json


class MemoryRun:
    """One run; running a body over it again is what an engine does after a crash."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[str, Json]] = {}
        self.notes: dict[str, Json] = {}
        self.cancelled = False
        self.working: set[asyncio.Task[Json]] = set()
        self._next = 0

    def again(self) -> MemoryRun:
        """Gives the run as the next process sees it."""
        run = MemoryRun()
        run.kept, run.notes, run.cancelled = self.kept, self.notes, self.cancelled
        return run

    def reserve(self, name: str) -> MemorySlot:
        self._next += 1
        return MemorySlot(self, self._next, name)

    async def note(self, name: str, value: Json) -> None:
        self.notes[name] = value


class MemorySlot:
    """A place in the order."""

    def __init__(self, run: MemoryRun, place: int, name: str) -> None:
        self._run, self._place, self._name = run, place, name

    async def run(self, work: Callable[[], Awaitable[Json]]) -> Json:
        if self._run.cancelled:
            raise RunCancelled
        if self._place not in self._run.kept:
            self._run.kept[self._place] = (self._name, await self._work(work))
        name, value = self._run.kept[self._place]
        assert name == self._name, "another step stands at this place"
        await asyncio.sleep(0)
        return value

    async def _work(self, work: Callable[[], Awaitable[Json]]) -> Json:
        task = asyncio.ensure_future(work())
        self._run.working.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._run.cancelled:
                raise RunCancelled from None
            raise
        finally:
            task.cancel()
            self._run.working.discard(task)


class MemoryEngine:
    """Runs bodies as tasks of this process; `again` gives what the next process finds."""

    def __init__(self, before: MemoryEngine | None = None) -> None:
        self.payloads: dict[str, Json] = dict(before.payloads) if before else {}
        self.runs: dict[str, MemoryRun] = {name: run.again() for name, run in before.runs.items()} if before else {}
        self.states: dict[str, RunState] = dict(before.states) if before else {}
        self.refuses: Exception | None = None
        self.submitting = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._body: Body | None = None

    async def start(self, body: Body) -> None:
        self._body = body
        for run in await self.list():
            self._go(run.id)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def submit(self, run: str, payload: Json) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.submitting.set()
        await asyncio.sleep(0.01)
        if run not in self.payloads:
            self.payloads[run], self.runs[run], self.states[run] = payload, MemoryRun(), RunState.RUNNING
            self._go(run)

    async def get(self, run: str) -> Run | None:
        if run not in self.payloads:
            return None
        kept = self.runs[run]
        return Run(run, self.states[run], self.payloads[run], dict(kept.kept.values()), dict(kept.notes))

    async def list(self) -> Sequence[Run]:
        found = [await self.get(run) for run, state in self.states.items() if state is RunState.RUNNING]
        return [run for run in found if run is not None]

    async def cancel(self, run: str) -> None:
        if self.states[run] is RunState.RUNNING:
            self.states[run] = RunState.CANCELLED
            self.runs[run].cancelled = True
            for task in self.runs[run].working:
                task.cancel()

    def _go(self, run: str) -> None:
        self._tasks[run] = asyncio.create_task(self._run(run))

    async def _run(self, run: str) -> None:
        assert self._body is not None
        try:
            await self._body(self.runs[run], self.payloads[run])
            self.states[run] = RunState.ENDED
        except RunCancelled:
            pass
        except Exception:
            self.states[run] = RunState.LOST
