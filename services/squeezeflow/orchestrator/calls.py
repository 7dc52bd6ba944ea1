"""The one kind of step: a call to a worker, carried through its restarts, crashes and crowds.

Whatever the worker or the network does, a call ends in an `Outcome`. A worker that is gone is called again, first where
the step was running (a step goes on for a while without its watcher, and calling again attaches to it), elsewhere only
when that one is gone; a crowded one is called again when it said so; a refusal is final.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import Message

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.orchestrator.record import Accepted, Outcome
from squeezeflow.orchestrator.references import References
from squeezeflow.orchestrator.requests import RPCS
from squeezeflow.rpc.errors import retry_after
from squeezeflow.rpc.worker_calls import WorkerCalls
from squeezeflow.v1 import step_pb2

log = logging.getLogger(__name__)

_CANCEL_SECONDS = 5.0


@dataclass(frozen=True)
class Patience:
    """How long a call is tried again.

    Attributes:
        unavailable_seconds: no worker takes the call.
        broken_calls: calls that a worker took and then was lost: the step itself may be what kills it.
        overloaded_seconds: workers answer OVERLOADED.
        store_calls: calls that ended with STORE_UNAVAILABLE.
        silence_seconds: without an event for so long a worker counts as lost; it sends heartbeats.
        first_delay, longest_delay: seconds between calls; doubled from one to the next.
    """

    unavailable_seconds: float = 120.0
    broken_calls: int = 5
    overloaded_seconds: float = 3600.0
    store_calls: int = 4
    silence_seconds: float = 60.0
    first_delay: float = 0.25
    longest_delay: float = 15.0


class Listener(Protocol):
    """Told what happens to a step."""

    async def accepted(self, accepted: Accepted, *, cached: bool) -> None:
        """A worker took the call."""

    def progressed(self, progress: step_pb2.StepProgress) -> None:
        """The step went forward."""

    def cancelling(self) -> bool:
        """Tells whether the step's job is to end, so that a cancelled call ends the step on its worker too."""


@dataclass(frozen=True)
class Call:
    """One step to be made.

    Attributes:
        node: names the step; equal for equal steps of one tenant.
        known: where the step was running when the orchestrator stopped.
    """

    tenant: str
    node: str
    technique: str
    request: Message
    known: Accepted | None = None


class Caller:
    """Makes the calls of all jobs.

    Args:
        targets: gRPC target by worker: `converter` → `dns:///converter:7071`.
    """

    def __init__(self, workers: WorkerCalls, targets: Mapping[str, str], patience: Patience = Patience()) -> None:
        self._workers = workers
        self._targets = targets
        self._patience = patience
        self._references = References()

    async def perform(self, call: Call, listener: Listener) -> Outcome:
        """Carries a step to its end; failures come back as outcomes, only cancellation is raised."""
        attempt = _Attempt(call, listener, self._targets[RPCS[call.technique].worker])
        key = (call.tenant, call.node)
        async with self._references.hold(key):
            try:
                return await self._until_ended(attempt)
            except asyncio.CancelledError:
                if listener.cancelling() and self._references.last(key):
                    with self._references.ending(key):
                        await self._end_step(attempt)
                raise

    async def _until_ended(self, attempt: _Attempt) -> Outcome:
        retries = _Retries(self._patience)
        while True:
            attempt.begin()
            try:
                return attempt.outcome(result=await self._once(attempt))
            except SqueezeflowError as error:
                if error.reason == "WORKER_UNAVAILABLE" and attempt.give_up_address():
                    continue
                delay = retries.delay(error, taken=attempt.taken)
                if delay is None:
                    return attempt.outcome(error=retries.last_word(error, attempt.attempts))
                log.warning("%s will be called again in %.1f s: %s", attempt.call.node, delay, error)
            await asyncio.sleep(delay)

    async def _once(self, attempt: _Attempt) -> step_pb2.StepResult:
        rpc = RPCS[attempt.call.technique]
        events = self._workers.step(
            attempt.address or attempt.target,
            f"{rpc.service}/{rpc.method}",
            attempt.call.request,
            tenant=attempt.call.tenant,
            silence_seconds=self._patience.silence_seconds,
        )
        async with aclosing(events):
            async for event in events:
                kind = event.WhichOneof("event")
                if kind == "result":
                    return event.result
                if kind == "accepted":
                    await attempt.take(event.accepted)
                elif kind == "progress":
                    attempt.progress = event.progress
                    attempt.listener.progressed(event.progress)
        raise SqueezeflowError("WORKER_UNAVAILABLE", f"{rpc.method} ended without a result")

    async def _end_step(self, attempt: _Attempt) -> None:
        """Ends the step on its worker; where that is gone, on whichever answers for the service."""
        if attempt.accepted is None or not attempt.accepted.action:
            return
        request = step_pb2.CancelStepRequest(action=attempt.accepted.action)
        for target in dict.fromkeys((attempt.accepted.worker or attempt.target, attempt.target)):
            try:
                await self._workers.ask(
                    target,
                    "squeezeflow.v1.Steps/CancelStep",
                    request,
                    step_pb2.Step.FromString,
                    tenant=attempt.call.tenant,
                    timeout=_CANCEL_SECONDS,
                )
                return
            except SqueezeflowError as error:
                if error.reason == "NOT_FOUND":  # it has ended meanwhile
                    return
                log.warning("%s was not cancelled at %s: %s", attempt.call.node, target, error)


@dataclass
class _Attempt:
    """A step while it is being made."""

    call: Call
    listener: Listener
    target: str
    accepted: Accepted | None = None
    address: str = ""
    attempts: int = 0
    started: float = 0.0
    taken: bool = False
    progress: step_pb2.StepProgress = field(default_factory=step_pb2.StepProgress)

    def __post_init__(self) -> None:
        known = self.call.known
        self.started = known.started if known else time.time()
        if known:
            self.accepted, self.address, self.attempts = known, known.worker, known.attempts

    def begin(self) -> None:
        self.attempts += 1
        self.taken = False

    def give_up_address(self) -> bool:
        """Forgets where the step was running when that worker no longer takes calls; tells whether there are others."""
        if self.taken:
            return False
        gone, self.address = self.address, ""
        return gone not in ("", self.target)

    async def take(self, accepted: step_pb2.StepAccepted) -> None:
        """Notes who runs the step; told to the listener, who keeps it for a later process."""
        self.taken = True
        self.address = accepted.worker
        self.accepted = Accepted(accepted.worker, accepted.action, self.attempts, self.started)
        await self.listener.accepted(self.accepted, cached=accepted.cached)

    def outcome(self, *, result: step_pb2.StepResult | None = None, error: SqueezeflowError | None = None) -> Outcome:
        return Outcome(
            result=result,
            error=error.to_proto() if error is not None else None,
            worker=self.accepted.worker if self.accepted else "",
            action=self.accepted.action if self.accepted else "",
            attempts=self.attempts,
            started=self.started,
            ended=time.time(),
            metrics=dict(self.progress.metrics),
        )


class _Retries:
    """Decides whether and when a failed call is made again."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._first: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._lost = 0

    def delay(self, error: SqueezeflowError, *, taken: bool) -> float | None:
        """Gives the seconds to wait before the next call; None: the error is final.

        Args:
            taken: whether a worker had taken the call that failed.
        """
        if error.reason == "WORKER_UNAVAILABLE" and taken:
            self._first.clear()
            self._calls.clear()
            self._lost += 1
        now = time.monotonic()
        waited = now - self._first.setdefault(error.reason, now)
        calls = self._calls[error.reason] = self._calls.get(error.reason, 0) + 1
        patience = self._patience
        backoff = min(patience.longest_delay, patience.first_delay * 2.0 ** (calls - 1))
        if error.reason == "WORKER_UNAVAILABLE":
            return backoff if waited < patience.unavailable_seconds and self._lost < patience.broken_calls else None
        if error.reason == "OVERLOADED":
            return retry_after(error) if waited < patience.overloaded_seconds else None
        if error.reason == "STORE_UNAVAILABLE":
            return backoff * 4 if calls < patience.store_calls else None
        return None

    def last_word(self, error: SqueezeflowError, attempts: int) -> SqueezeflowError:
        """Gives the error with what was tried."""
        if error.reason != "WORKER_UNAVAILABLE":
            return error
        tried = f"{self._lost} workers were lost while they ran the step" if self._lost else f"{attempts} calls failed"
        return SqueezeflowError("WORKER_UNAVAILABLE", f"{tried}; the last: {error.message}", metadata=error.metadata)
