"""A job while it runs: a bar a step on a terminal, a line a change everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from squeezeflow.cli import tables
from squeezeflow.v1 import jobs_pb2

_OVER = frozenset({jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED})
StepKey = tuple[str, int]


class JobView(AbstractContextManager["JobView"], Protocol):
    """Shows a job that changes."""

    def update(self, job: jobs_pb2.Job) -> None:
        """Shows the job as it stands now."""


def job_view(console: Console) -> JobView:
    """Gives bars on a terminal, lines elsewhere."""
    return Bars(console) if console.is_terminal else Lines(console)


class Bars(JobView):
    """One bar for every step that runs or ran."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[recipe]:<14}"),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
        )
        self._tasks: dict[StepKey, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, job: jobs_pb2.Job) -> None:
        """Moves the bars; a step gets its bar when it begins."""
        for key, candidate, step in _steps(job):
            if step.state == jobs_pb2.JOB_STATE_QUEUED and key not in self._tasks:
                continue
            if key not in self._tasks:
                self._tasks[key] = self._progress.add_task(
                    step.technique, total=1.0, recipe=candidate.recipe, detail=""
                )
            done = step.state == jobs_pb2.JOB_STATE_SUCCEEDED
            self._progress.update(self._tasks[key], completed=1.0 if done else step.fraction, detail=step_detail(step))
            if step.state in _OVER:
                self._progress.stop_task(self._tasks[key])


class Lines(JobView):
    """One line whenever a step begins or ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[StepKey, int] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def update(self, job: jobs_pb2.Job) -> None:
        """Prints what changed since the last update."""
        for key, candidate, step in _steps(job):
            before = self._seen.get(key, jobs_pb2.JOB_STATE_QUEUED)
            if step.state != before:
                self._seen[key] = step.state
                self._console.print(step_line(candidate.recipe, step), soft_wrap=True)


def step_line(recipe: str, step: jobs_pb2.CandidateStep) -> str:
    """Gives one line about a step that began or ended."""
    detail = step_detail(step)
    return f"{recipe}: {step.technique} {tables.state(step.state).lower()}{f' ({detail})' if detail else ''}"


def step_detail(step: jobs_pb2.CandidateStep) -> str:
    """Gives what is worth saying beside a step's bar."""
    parts = []
    if step.state == jobs_pb2.JOB_STATE_SUCCEEDED:
        parts.append("cached" if step.cached else f"{step.seconds:.1f} s")
        if step.HasField("sizes"):
            parts.append(tables.size(step.sizes.raw_bytes))
    elif step.state in _OVER:
        parts.append(tables.state(step.state).lower())
    else:
        parts += [step.stage] if step.stage else []
        parts += [f"{name} {value:.4g}" for name, value in sorted(step.metrics.items())]
    if step.attempts > 1:
        parts.append(f"attempt {step.attempts}")
    return ", ".join(parts)


def _steps(job: jobs_pb2.Job) -> Iterator[tuple[StepKey, jobs_pb2.Candidate, jobs_pb2.CandidateStep]]:
    for candidate in job.candidates:
        for index, step in enumerate(candidate.steps):
            yield (candidate.recipe, index), candidate, step
