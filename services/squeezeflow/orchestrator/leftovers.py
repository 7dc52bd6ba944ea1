"""Checkpoints of jobs that have ended: no worker can know that nobody will call a step again, the orchestrator does.

A worker removes what it ends itself. What stays is of workers that were killed, of steps that crashed for the last
time, and of jobs that were cancelled while no worker had the step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from squeezeflow.core.checkpoints import Checkpoints
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import Store
from squeezeflow.orchestrator.live import LiveJob
from squeezeflow.orchestrator.recipes import TRAINED

log = logging.getLogger(__name__)


class Leftovers:
    """Removes the checkpoints of jobs of all tenants in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def remove(self, ended: LiveJob, others: Iterable[LiveJob]) -> None:
        """Removes what the trained steps of a job have left, one call a step.

        A store that does not answer costs the removal alone: what is left is swept away later.

        Args:
            ended: a job that has ended.
            others: jobs that may run still; what they train as well is left to them.
        """
        tenant = ended.record.tenant
        used = {
            action
            for other in others
            if other is not ended and other.record.tenant == tenant and not other.final
            for action in trained_actions(other)
        }
        actions = sorted(trained_actions(ended) - used)
        try:
            await asyncio.to_thread(self._remove, tenant, actions)
        except SqueezeflowError as error:
            log.warning("the checkpoints of job %s were not removed: %s", ended.record.key, error)

    def _remove(self, tenant: str, actions: list[str]) -> None:
        kept = Checkpoints(self._store, tenant)
        for action in actions:
            kept.delete(action)


def trained_actions(live: LiveJob) -> set[str]:
    """Gives the actions of a job's steps that train, as far as a worker has taken them."""
    actions: set[str] = set()
    for node in live.record.plan.nodes:
        if node.technique in TRAINED:
            step = live.step(node.id)
            told = (step.accepted.action if step.accepted else "", step.outcome.action if step.outcome else "")
            actions.update(action for action in told if action)
    return actions
