"""A job that runs in this process: its steps as they stand, and those who watch it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from squeezeflow.orchestrator.engine import Run
from squeezeflow.orchestrator.record import Accepted, JobRecord, Outcome, StepView
from squeezeflow.orchestrator.report import FINAL, Ending, assemble
from squeezeflow.orchestrator.workflow import blocked
from squeezeflow.v1 import jobs_pb2, step_pb2


class LiveJob:
    """The state that only this process has, over the record that the engine keeps.

    Attributes:
        body_runs: whether the engine runs its body in this process.
        settled: set when the body is through and the document written.
    """

    def __init__(self, record: JobRecord, steps: Mapping[str, StepView] | None = None) -> None:
        self.record = record
        self.ending = Ending()
        self.body_runs = False
        self.settled = asyncio.Event()
        self._steps = dict(steps or {})
        self._job: jobs_pb2.Job | None = None
        self._watchers: set[asyncio.Event] = set()
        self._over = asyncio.Event()

    @classmethod
    def restored(cls, run: Run) -> LiveJob:
        """Gives a job as the engine knows it: what has ended, and where the rest was running."""
        steps = {node: StepView(accepted=Accepted.from_json(note)) for node, note in run.notes.items()}
        record = JobRecord.from_json(run.payload)
        outcomes = {node: Outcome.from_json(result) for node, result in run.results.items()}
        for node in record.plan.nodes:
            # A step that was not called leaves nothing with the engine.
            skipped = blocked(node, outcomes)
            if skipped is not None:
                outcomes[node.id] = skipped
        steps.update({node: StepView(outcome=outcome) for node, outcome in outcomes.items()})
        return cls(record, steps)

    def job(self) -> jobs_pb2.Job:
        """Gives the job as it stands; made once a change. Not to be changed by the caller."""
        if self._job is None:
            self._job = assemble(self.record, self._steps, self.ending)
        return self._job

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.job().state in FINAL

    def step(self, node: str) -> StepView:
        """Gives a step as it stands."""
        return self._steps.get(node, StepView())

    def called(self, node: str) -> None:
        """Notes that a step is being called."""
        self._change(node, running=True)

    def accepted(self, node: str, accepted: Accepted, *, cached: bool) -> None:
        """Notes that a worker took the call."""
        self._change(node, accepted=accepted, cached=cached)

    def progressed(self, node: str, progress: step_pb2.StepProgress) -> None:
        """Notes how far a step is."""
        self._change(node, progress=progress)

    def ended(self, node: str, outcome: Outcome) -> None:
        """Notes how a step ended."""
        self._change(node, running=False, outcome=outcome)
        self._look_for_end()

    def end(self, ending: Ending) -> None:
        """Notes what was done to the job as a whole; nothing changes for one that has ended."""
        if not self.final:
            self.ending = ending
            self._changed()
            self._look_for_end()

    def wake(self) -> None:
        """Gives the watchers the job again, changed or not."""
        for event in self._watchers:
            event.set()

    async def watch(self, interval: float) -> AsyncGenerator[jobs_pb2.Job, None]:
        """Gives the job as it stands, then again when it has changed; ends after a final state.

        Args:
            interval: least number of seconds from one to the next; the final one comes at once.
        """
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                job = self.job()
                yield job
                if job.state in FINAL:
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), interval)
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _look_for_end(self) -> None:
        if self.final:
            self._over.set()

    def _change(self, node: str, **changes: Any) -> None:
        self._steps[node] = dataclasses.replace(self.step(node), **changes)
        self._changed()

    def _changed(self) -> None:
        self._job = None
        self.wake()
