"""The engine on DBOS and SQLite: one DBOS workflow a run, one DBOS step a slot.

DBOS finds results again by their place in the workflow, so places are drawn with `reserve_step` before anything runs
at the same time. Everything is kept as JSON, never pickled. Our own lock file keeps a second process off the database.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.orchestrator.engine import Body, Run, RunCancelled, RunState
from squeezeflow.orchestrator.record import Json

if TYPE_CHECKING:
    from dbos import StepReservation

log = logging.getLogger(__name__)

# Part of every run in the database: a run is only taken up again by the same version. Change the body so that it still
# fits runs that are under way; never change this.
_APPLICATION_VERSION = "1"
_WORKFLOW = "job"
_UNENDED = ("PENDING", "ENQUEUED", "DELAYED")
# Seconds between looks of DBOS for events of its own, which we do not use; bounds how long stopping takes.
_LISTENER_SECONDS = 0.2
_CLOSE_SECONDS = 5.0


class DbosEngine:
    """Runs bodies durably over one SQLite file.

    Args:
        database: path of the SQLite file; its folder is made.
        executor: name under which unfinished runs are taken up again: keep it from one start to the next.
    """

    def __init__(self, database: Path, executor: str) -> None:
        self._database = database
        self._executor = executor
        self._lock = FileLock(f"{database}.lock")
        self._dbos: Any = None
        self._workflow: Any = None
        self._bodies: set[asyncio.Task[Any]] = set()
        self._ending: set[asyncio.Task[Any]] = set()
        self._cancelled: set[str] = set()

    def take(self) -> None:
        """Takes the database for this process; INVALID_PARAMETER where another has it."""
        if self._lock.is_locked:
            return
        self._database.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise SqueezeflowError(
                "INVALID_PARAMETER",
                f"another orchestrator runs on {self._database}: use that one, stop it, or set SQUEEZEFLOW_DATABASE to "
                "another file",
            ) from error

    async def start(self, body: Body) -> None:
        """Launches DBOS on this event loop; it takes up unfinished runs within about a second."""
        self.take()
        # Importing takes more than a second: the server answers health checks meanwhile.
        self._dbos = await asyncio.to_thread(importlib.import_module, "dbos")
        await asyncio.to_thread(_prepare, self._database)
        dbos = self._dbos
        dbos.DBOS(
            config={
                "name": "squeezeflow",
                "system_database_url": f"sqlite:///{self._database}",
                "application_version": _APPLICATION_VERSION,
                "executor_id": self._executor,
                "serializer": dbos.DBOSPortableJSONSerializer(),
                "notification_listener_polling_interval_sec": _LISTENER_SECONDS,
                "enable_otlp": False,
                "log_level": "ERROR",
            }
        )

        async def run(payload: Json) -> Json:
            return await self._run(body, payload)

        self._workflow = dbos.DBOS.workflow(name=_WORKFLOW)(run)
        logging.getLogger("dbos").addFilter(_NO_PARKED_CANCELLATIONS)
        # On this thread: DBOS runs workflows on the loop that it is launched from.
        dbos.DBOS.launch()

    async def close(self) -> None:
        """Stops; what had not ended stays pending in the database."""
        for task in self._bodies:
            task.cancel()
        remaining = self._bodies | self._ending
        if remaining:
            await asyncio.wait(remaining, timeout=_CLOSE_SECONDS)
        if self._dbos is not None:
            self._dbos.DBOS.destroy(workflow_completion_timeout_sec=0, destroy_registry=True)
            self._dbos = None
            # DBOS made its own threads those of the event loop, and has ended them; calls that are still being served
            # need some.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
        self._lock.release()

    async def submit(self, run: str, payload: Json) -> None:
        """Records the run and starts it."""
        with self._dbos.SetWorkflowID(run):
            await self._dbos.DBOS.start_workflow_async(self._workflow, payload)

    async def get(self, run: str) -> Run | None:
        """Reads a run from the database."""
        found = await self._dbos.DBOS.list_workflows_async(workflow_ids=[run], load_output=False)
        return await self._read(found[0]) if found else None

    async def list(self) -> Sequence[Run]:
        """Reads the runs that have not ended."""
        found = await self._dbos.DBOS.list_workflows_async(status=list(_UNENDED), name=_WORKFLOW, load_output=False)
        return [await self._read(status) for status in found]

    async def cancel(self, run: str) -> None:
        """Marks the run; its steps are cancelled within a second."""
        self._cancelled.add(run)
        await self._dbos.DBOS.cancel_workflow_async(run)

    async def _read(self, status: Any) -> Run:
        steps = await self._dbos.DBOS.list_workflow_steps_async(status.workflow_id)
        return Run(
            id=status.workflow_id,
            state=_state(status.status),
            payload=status.input["args"][0],
            results={step["function_name"]: step["output"] for step in steps if step["output"] is not None},
            notes=await self._dbos.DBOS.get_all_events_async(status.workflow_id),
        )

    async def _run(self, body: Body, payload: Json) -> Json:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a run is a task")
        self._bodies.add(task)
        run: str = self._dbos.DBOS.workflow_id
        try:
            return await body(_DbosRun(self._dbos, run, self._cancelled), payload)
        except RunCancelled as error:
            if error.__cause__ is not None:
                raise error.__cause__ from None
            raise
        finally:
            # What is left to do is DBOS's: to write down how the run ended.
            self._bodies.discard(task)
            self._cancelled.discard(run)
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


class _DbosRun:
    """What a body sees: DBOS through the port."""

    def __init__(self, dbos: Any, run: str, cancelled: Collection[str]) -> None:
        self.dbos = dbos
        self._run = run
        self._cancelled = cancelled

    @property
    def cancelled(self) -> bool:
        """Whether this process has cancelled the run."""
        return self._run in self._cancelled

    def reserve(self, name: str) -> _DbosSlot:
        """Draws the next step id."""
        return _DbosSlot(self, self.dbos.DBOS.reserve_step(), name)

    async def note(self, name: str, value: Json) -> None:
        """Sets an event of the workflow."""
        await self.dbos.DBOS.set_event_async(name, value)


class _DbosSlot:
    """A step id that was drawn."""

    def __init__(self, run: _DbosRun, reservation: StepReservation, name: str) -> None:
        self._run = run
        self._reservation = reservation
        self._name = name

    async def run(self, work: Callable[[], Awaitable[Json]]) -> Json:
        """Runs the work as a DBOS step that a cancelled workflow interrupts."""

        async def step() -> Json:
            return await work()

        errors = self._run.dbos.error
        try:
            result: Json = await self._reservation.run_async({"name": self._name, "preemptible": True}, step)
        except errors.DBOSWorkflowCancelledError as error:
            raise RunCancelled from error
        except errors.DBOSWorkflowConflictIDError as error:
            # A result that comes after the cancellation is refused with this, for the run has no owner any more.
            if self._run.cancelled:
                raise RunCancelled from error
            raise
        return result


class _NoParkedCancellations(logging.Filter):
    """Drops what DBOS logs when a cancelled workflow has ended: it is what was asked for."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tells whether a record is worth a line."""
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or kind.__name__ != "DBOSAwaitedWorkflowCancelledError"


_NO_PARKED_CANCELLATIONS = _NoParkedCancellations()


def _prepare(database: Path) -> None:
    """Switches the database to a write-ahead log: one flush to disk a step instead of three."""
    try:
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
    except sqlite3.DatabaseError as error:
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"{database} is no database ({error}): set SQUEEZEFLOW_DATABASE to another file",
        ) from error


def _state(status: str) -> RunState:
    if status in _UNENDED:
        return RunState.RUNNING
    return {"SUCCESS": RunState.ENDED, "CANCELLED": RunState.CANCELLED}.get(status, RunState.LOST)
