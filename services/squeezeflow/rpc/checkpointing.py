"""Takes the state of a fit from the child's folder to the store while it trains, and away again when it is done.

A checkpoint outlives what another run could overcome (a killed worker, a crash, a limit, a watcher that left) and
nothing else: not a result, not a refusal, not a caller who cancelled. Whoever calls decides whether there is another
run: the orchestrator removes the checkpoints of every job that has ended. What is left over all the same (its worker
was killed and no job called it) is swept away by later steps of the tenant.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from squeezeflow.core.checkpoints import Checkpoints
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import Checkpoint
from squeezeflow.core.store import Store

log = logging.getLogger(__name__)

# After these the same action may well succeed where it stopped.
OVERCOME = frozenset(
    {
        "CHILD_CRASHED",
        "OUT_OF_MEMORY",
        "TIMED_OUT",
        "WORKER_UNAVAILABLE",
        "STORE_UNAVAILABLE",
        "OVERLOADED",
        "QUOTA_EXCEEDED",
    }
)


class StepCheckpoint:
    """The checkpoint of one step on its way between the child's folder and the store.

    A store that does not answer costs the checkpoint, never the step.

    Args:
        action: digest of the step's action.
        seconds: least time between two checkpoints.
    """

    def __init__(self, store: Store, tenant: str, action: str, seconds: float) -> None:
        self._checkpoints = Checkpoints(store, tenant)
        self._action = action
        self._seconds = seconds
        self._path: Path | None = None
        self._written = self._stored = 0
        self._upload: asyncio.Task[None] | None = None

    async def fetch(self, folder: Path) -> Checkpoint:
        """Gives the child its place below `folder`, with what an earlier run left."""
        return await asyncio.to_thread(self._fetch, folder)

    def _fetch(self, folder: Path) -> Checkpoint:
        folder.mkdir()
        self._path = folder / "state"
        try:
            if self._checkpoints.fetch(self._action, self._path):
                log.info("%s goes on from a checkpoint", self._action[:12])
        except SqueezeflowError as error:
            log.warning("the checkpoint of %s cannot be read: %s", self._action[:12], error)
        return Checkpoint(self._path, self._seconds, action=self._action)

    def look(self, news: dict[str, Any]) -> None:
        """Starts an upload when the child's news say that there is a newer state; one at a time, the newest counts."""
        written = news.get("checkpoint")
        if not isinstance(written, int) or written <= self._written:
            return
        self._written = written
        if self._upload is None or self._upload.done():
            self._upload = asyncio.create_task(self._put())

    async def settle(self, *, forget: bool) -> None:
        """Waits for an upload that is under way; removes the checkpoint where no run shall take it up again.

        Old ones of other actions, that nobody will take up, are removed too.
        """
        self._stored = self._written  # what is not under way yet is not begun
        if self._upload is not None:
            await self._upload
        await asyncio.to_thread(self._tidy, forget)

    def _tidy(self, forget: bool) -> None:
        try:
            if forget:
                self._checkpoints.delete(self._action)
            for action in self._checkpoints.sweep(self._action):
                log.info("the checkpoint of %s was left over and is removed", action[:12])
        except SqueezeflowError as error:
            log.warning("the checkpoint of %s cannot be removed: %s", self._action[:12], error)

    async def _put(self) -> None:
        while self._stored < self._written and self._path is not None:
            self._stored = self._written
            try:
                await asyncio.to_thread(self._checkpoints.put, self._action, self._path)
            except (SqueezeflowError, OSError) as error:
                log.warning("a checkpoint of %s cannot be stored: %s", self._action[:12], error)
