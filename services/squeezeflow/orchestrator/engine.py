"""The engine port: what runs jobs to their end, whatever becomes of this process meanwhile.

A run is a body (a coroutine function) over a JSON payload. The body reserves a slot for every step before it runs any,
in an order that depends on the payload alone; what a slot's work gave is kept, and is not done again when the body is
run anew after a crash.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from squeezeflow.orchestrator.record import Json


class RunCancelled(BaseException):
    """The run was cancelled: raised in the body at its next slot, so that it can tidy up. Not to be swallowed."""


class Slot(Protocol):
    """A place in the run's order of steps."""

    async def run(self, work: Callable[[], Awaitable[Json]]) -> Json:
        """Gives what is kept for this slot, else does the work and keeps what it gave.

        The work is cancelled (`asyncio.CancelledError`) when the run is cancelled, and may tidy up then. An exception
        of the work is a defect: expected failures are values.
        """


class Durable(Protocol):
    """What a body sees of the engine."""

    def reserve(self, name: str) -> Slot:
        """Gives the next slot; the name is kept beside its result."""

    async def note(self, name: str, value: Json) -> None:
        """Keeps a word about a slot whose work is under way; only to be called from within the work."""


Body = Callable[[Durable, Json], Awaitable[Json]]


class RunState(enum.Enum):
    """Where a run is."""

    RUNNING = "running"
    ENDED = "ended"
    CANCELLED = "cancelled"
    LOST = "lost"  # ended by a failure of the engine or a defect of the body


@dataclass(frozen=True)
class Run:
    """A run as the engine keeps it.

    Attributes:
        results: what slots gave, by name.
        notes: the last word about each slot, by name.
    """

    id: str
    state: RunState
    payload: Json
    results: Mapping[str, Json] = field(default_factory=dict)
    notes: Mapping[str, Json] = field(default_factory=dict)


class Engine(Protocol):
    """Keeps and runs bodies. Ids are unique; a second submit of the same id changes nothing."""

    async def start(self, body: Body) -> None:
        """Takes the database, and runs again whatever had not ended; INVALID_PARAMETER where another process has it."""

    async def close(self) -> None:
        """Stops; runs that had not ended go on at the next start."""

    async def submit(self, run: str, payload: Json) -> None:
        """Starts a run; it will end even if this process does not live to see it."""

    async def get(self, run: str) -> Run | None:
        """Gives a run as it is kept."""

    async def list(self) -> Sequence[Run]:
        """Gives the runs that have not ended."""

    async def cancel(self, run: str) -> None:
        """Cancels a run, also one whose body does not run at the moment; nothing happens to one that ended."""
