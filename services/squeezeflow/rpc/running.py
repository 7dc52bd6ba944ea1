"""A step that runs, and those who watch it.

Watchers come and go; the step goes on for a linger time after the last one left (it may be the orchestrator restarting)
and is then cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import step_pb2

HEARTBEAT_SECONDS = 5.0


class RunningStep:
    """One execution: a task, its last progress, its watchers and its end.

    Args:
        action: digest of the action.
        technique: its name.
        linger_seconds: how long it goes on without a watcher.
    """

    def __init__(self, action: str, technique: str, linger_seconds: float) -> None:
        self.step = step_pb2.Step(action=action, technique=technique, state=step_pb2.STEP_STATE_QUEUED)
        self.step.create_time.GetCurrentTime()
        self.step.progress.stage = "queued"
        self.done = asyncio.Event()
        self.result: step_pb2.StepResult | None = None
        self._linger_seconds = linger_seconds
        self._linger: asyncio.TimerHandle | None = None
        self._changed: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None
        self._why_ended: SqueezeflowError | None = None
        self.for_good = False

    def start(self, work: Coroutine[Any, Any, step_pb2.StepResult]) -> None:
        """Runs the work in a task of its own."""
        self._task = asyncio.create_task(self._run(work))

    async def _run(self, work: Coroutine[Any, Any, step_pb2.StepResult]) -> None:
        try:
            self.result = await work
            self._end(step_pb2.STEP_STATE_SUCCEEDED, None)
        except SqueezeflowError as error:
            self._end(step_pb2.STEP_STATE_FAILED, error)
        except asyncio.CancelledError:
            why = self._why_ended or SqueezeflowError("CANCELLED", "the step was cancelled")
            self._end(step_pb2.STEP_STATE_CANCELLED, why)
        except Exception as error:
            text = f"{type(error).__name__}: {error}: this is a defect of Squeezeflow"
            self._end(step_pb2.STEP_STATE_FAILED, SqueezeflowError("INTERNAL", text))
            raise

    def _end(self, state: step_pb2.StepState, error: SqueezeflowError | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self.step.state = state
        self.step.end_time.GetCurrentTime()
        if error is not None:
            self.step.error.CopyFrom(error.to_proto())
        self.done.set()
        self._tell()

    def end(self, why: SqueezeflowError, *, for_good: bool = False) -> None:
        """Ends the step now; all its watchers get the reason. `for_good`: nobody will want to go on with it."""
        if self._task is not None and not self.done.is_set():
            self._why_ended = why
            self.for_good = for_good
            self._task.cancel()

    def running(self) -> None:
        """Notes that the step has its slot."""
        self.step.state = step_pb2.STEP_STATE_RUNNING

    def progress(self, news: step_pb2.StepProgress) -> None:
        """Keeps the last progress and wakes the watchers."""
        self.step.progress.CopyFrom(news)
        self._tell()

    def _tell(self) -> None:
        for event in self._changed:
            event.set()

    async def watch(self, accepted: step_pb2.StepAccepted) -> AsyncIterator[step_pb2.StepEvent]:
        """Streams `accepted`, then progress and heartbeats, then the result; raises the step's error.

        A slow watcher gets the newest progress, not every one: nothing piles up for it.
        """
        changed = asyncio.Event()
        self._changed.add(changed)
        self.step.watchers = len(self._changed)
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        try:
            yield step_pb2.StepEvent(accepted=accepted)
            told = None
            while not self.done.is_set():
                if told != self.step.progress:
                    told = step_pb2.StepProgress()
                    told.CopyFrom(self.step.progress)
                    yield step_pb2.StepEvent(progress=told)
                    continue
                changed.clear()
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    heartbeat = step_pb2.StepHeartbeat()
                    heartbeat.time.GetCurrentTime()
                    yield step_pb2.StepEvent(heartbeat=heartbeat)
            if self.result is None:
                raise SqueezeflowError.from_proto(self.step.error)
            yield step_pb2.StepEvent(result=self.result)
        finally:
            self._leave(changed)

    def _leave(self, changed: asyncio.Event) -> None:
        self._changed.discard(changed)
        self.step.watchers = len(self._changed)
        if not self._changed and not self.done.is_set():
            gone = SqueezeflowError("CANCELLED", f"nobody watched the step for {self._linger_seconds:g} s")
            self._linger = asyncio.get_running_loop().call_later(self._linger_seconds, self.end, gone)
