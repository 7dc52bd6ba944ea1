"""The step protocol, once, for every worker.

validate → action digest → cache hit, attach, or start → progress, heartbeat → invariants → store → action record →
result. Calling again with the same request never does the work twice. No service knows more of it than `StepCall`.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import Message

from squeezeflow.core.actions import Action, ActionCache
from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.canonical import fill_defaults
from squeezeflow.core.config import ServiceConfig
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import Limits, Sandbox
from squeezeflow.core.step import StepInputs, encode_request
from squeezeflow.core.store import Store
from squeezeflow.rpc.checkpointing import OVERCOME, StepCheckpoint
from squeezeflow.rpc.errors import RETRY_AFTER
from squeezeflow.rpc.running import RunningStep
from squeezeflow.rpc.step_files import fetch_artifacts, progress_of, store_outputs
from squeezeflow.rpc.tenant import current_tenant
from squeezeflow.v1 import step_pb2

log = logging.getLogger(__name__)

_RECENT_STEPS = 256


@dataclass(frozen=True)
class StepCall:
    """What a compute rpc asks for.

    Attributes:
        technique: name in the action: `convert`.
        entry: `module:function` of the technique's `run`.
        params: the technique's message; defaults are filled in here.
        inputs: artifact digests by role; empty ones are left out.
        cacheable: whether the result may be recorded, and answered from the record.
    """

    technique: str
    entry: str
    params: Message
    inputs: Mapping[str, str]
    signature: str = ""
    scale: Sequence[float] = ()
    offset: Sequence[float] = ()
    cacheable: bool = True

    @property
    def trains(self) -> bool:
        """Whether the technique fits the model: such a step keeps checkpoints."""
        return self.cacheable and "fine_tune" in self.params.DESCRIPTOR.fields_by_name


class StepRunner:
    """Runs the steps of one worker.

    Args:
        config: limits, addresses and the scratch folder.
        store: where artifacts and records are.
        sandbox: where techniques run; may still be starting.
        toolchain: library versions that enter every action.
    """

    def __init__(self, config: ServiceConfig, store: Store, sandbox: Sandbox, toolchain: Mapping[str, str]) -> None:
        self._config = config
        self._store = store
        self._sandbox = sandbox
        self._toolchain = toolchain
        self._worker = config.advertise or config.listen
        self._slots = asyncio.Semaphore(config.max_concurrent_steps)
        self._running: dict[tuple[str, str], RunningStep] = {}
        self._recent: deque[tuple[str, step_pb2.Step]] = deque(maxlen=_RECENT_STEPS)

    def bound(self, address: str) -> None:
        """Notes the address that the server was bound to: what `accepted` tells where no other is configured."""
        self._worker = self._config.advertise or address

    def artifacts(self, tenant: str) -> Artifacts:
        """Gives the tenant's artifacts."""
        return Artifacts(self._store, tenant)

    def cache(self, tenant: str) -> ActionCache:
        """Gives the tenant's action records."""
        return ActionCache(self._store, tenant)

    async def stream(self, call: StepCall) -> AsyncIterator[step_pb2.StepEvent]:
        """Answers a compute rpc: from the record, from the running step, or by starting one."""
        tenant = current_tenant()
        action = self._action(call)
        key = (tenant, action.digest)
        if call.cacheable and key not in self._running:
            known = await asyncio.to_thread(self.cache(tenant).get, action.digest)
            if known is not None:
                yield self._accepted(action, cached=True)
                yield step_pb2.StepEvent(result=known)
                return
        running = self._running.get(key)
        attached = running is not None
        if running is None:
            running = self._start(tenant, action, call)
        accepted = self._accepted(action, attached=attached).accepted
        async for event in running.watch(accepted):
            yield event

    async def watch(self, action: str) -> AsyncIterator[step_pb2.StepEvent]:
        """Attaches to a running step of the caller's tenant."""
        running = self._find(action)
        accepted = step_pb2.StepAccepted(action=action, worker=self._worker, attached=True)
        async for event in running.watch(accepted):
            yield event

    def cancel(self, action: str) -> step_pb2.Step:
        """Ends a running step of the caller's tenant."""
        running = self._find(action)
        running.end(SqueezeflowError("CANCELLED", "the step was cancelled by a caller"), for_good=True)
        return running.step

    def list(self) -> list[step_pb2.Step]:
        """Gives the caller's steps, newest first."""
        tenant = current_tenant()
        live = [running.step for (owner, _), running in self._running.items() if owner == tenant]
        ended = [step for owner, step in self._recent if owner == tenant]
        return sorted(live + ended, key=lambda step: step.create_time.ToNanoseconds(), reverse=True)[:1000]

    async def close(self) -> None:
        """Ends all steps; their callers are told to try elsewhere."""
        gone = SqueezeflowError("WORKER_UNAVAILABLE", f"{self._config.service} at {self._worker} is shutting down")
        steps = list(self._running.values())
        for running in steps:
            running.end(gone)
        for running in steps:
            await running.done.wait()
        await self._sandbox.close()

    def _find(self, action: str) -> RunningStep:
        running = self._running.get((current_tenant(), action))
        if running is None:
            raise SqueezeflowError("NOT_FOUND", f"no step with action {action} is running on {self._worker}")
        return running

    def _accepted(self, action: Action, *, cached: bool = False, attached: bool = False) -> step_pb2.StepEvent:
        return step_pb2.StepEvent(
            accepted=step_pb2.StepAccepted(action=action.digest, worker=self._worker, cached=cached, attached=attached)
        )

    def _action(self, call: StepCall) -> Action:
        settings: dict[str, Any] = {
            "signature": call.signature,
            "scale": [float(value) for value in call.scale],
            "offset": [float(value) for value in call.offset],
        }
        if not call.cacheable:
            settings["nonce"] = uuid.uuid4().hex
        return Action(
            technique=call.technique,
            params=fill_defaults(call.params),
            inputs={role: digest for role, digest in call.inputs.items() if digest},
            settings=settings,
            toolchain=self._toolchain,
        )

    def _start(self, tenant: str, action: Action, call: StepCall) -> RunningStep:
        if len(self._running) >= self._config.max_concurrent_steps + self._config.max_queued_steps:
            raise SqueezeflowError(
                "OVERLOADED",
                f"{self._config.service} has {len(self._running)} steps running or waiting: try again later",
                metadata={RETRY_AFTER: 5},
            )
        running = RunningStep(action.digest, action.technique, self._config.linger_seconds)
        self._running[tenant, action.digest] = running
        running.start(self._tracked(tenant, action, call, running))
        return running

    async def _tracked(self, tenant: str, action: Action, call: StepCall, running: RunningStep) -> step_pb2.StepResult:
        try:
            if not call.trains:
                return await self._queued(tenant, action, call, running, None)
            return await self._kept(tenant, action, call, running)
        finally:
            del self._running[tenant, action.digest]
            self._recent.append((tenant, running.step))

    async def _kept(self, tenant: str, action: Action, call: StepCall, running: RunningStep) -> step_pb2.StepResult:
        checkpoint = StepCheckpoint(self._store, tenant, action.digest, self._config.checkpoint_seconds)
        forget = True
        try:
            return await self._queued(tenant, action, call, running, checkpoint)
        except SqueezeflowError as error:
            forget = error.reason not in OVERCOME
            raise
        except asyncio.CancelledError:
            forget = running.for_good
            raise
        finally:
            await checkpoint.settle(forget=forget)

    async def _queued(
        self, tenant: str, action: Action, call: StepCall, running: RunningStep, checkpoint: StepCheckpoint | None
    ) -> step_pb2.StepResult:
        asked = time.perf_counter()
        async with self._slots:
            running.running()
            queued = time.perf_counter() - asked
            started = datetime.now(UTC)
            self._config.workdir.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{action.technique}-", dir=self._config.workdir))
            try:
                result = await self._execute(tenant, action, call, running, folder, checkpoint)
                result.seconds["queue"] = queued
                if call.cacheable:
                    cache = self.cache(tenant)
                    result = await asyncio.to_thread(cache.put, action, result, started)
                log.info("%s %s done in %.2f s", action.technique, action.digest[:12], time.perf_counter() - asked)
                return result
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _execute(
        self,
        tenant: str,
        action: Action,
        call: StepCall,
        running: RunningStep,
        folder: Path,
        checkpoint: StepCheckpoint | None,
    ) -> step_pb2.StepResult:
        artifacts = self.artifacts(tenant)
        began = time.perf_counter()
        running.progress(step_pb2.StepProgress(stage="fetching"))
        paths = await asyncio.to_thread(fetch_artifacts, artifacts, action.inputs, folder)
        (folder / "work").mkdir()
        inputs = StepInputs(
            artifacts=paths,
            workdir=folder / "work",
            signature=call.signature,
            scale=tuple(call.scale),
            offset=tuple(call.offset),
            threads=self._config.step_threads,
        )
        if checkpoint is not None:
            inputs = replace(inputs, checkpoint=await checkpoint.fetch(folder / "checkpoint"))
        fetched = time.perf_counter()

        def heard(news: dict[str, Any]) -> None:
            if checkpoint is not None:
                checkpoint.look(news)
            running.progress(progress_of(news))

        child = await self._sandbox.run(
            "squeezeflow.core.step:execute",
            encode_request(call.entry, action.params, inputs),
            limits=Limits(wall_seconds=self._config.step_wall_seconds, memory_mib=self._config.step_memory_mib),
            on_progress=heard,
        )
        ran = time.perf_counter()
        running.progress(step_pb2.StepProgress(fraction=1.0, stage="storing"))
        result = await asyncio.to_thread(store_outputs, artifacts, child, folder)
        result.action = action.digest
        result.peak_memory_mib = child.peak_memory_mib
        result.seconds["fetch"] = fetched - began
        result.seconds["child"] = ran - fetched
        result.seconds["store"] = time.perf_counter() - ran
        return result


class TechniqueRequest(Protocol):
    """What every technique's request has: a model, data, parameters."""

    @property
    def model(self) -> step_pb2.ModelInput:
        """The model."""

    @property
    def data(self) -> step_pb2.DataInput:
        """The data, where there is any."""

    @property
    def params(self) -> Any:
        """The technique's message."""


def technique_call(technique: str, entry: str, request: TechniqueRequest) -> StepCall:
    """Gives the call of a technique that takes a model, data and parameters."""
    return StepCall(
        technique=technique,
        entry=entry,
        params=request.params,
        inputs={"model": request.model.artifact, "data": request.data.artifact},
        signature=request.model.signature,
        scale=request.data.scale,
        offset=request.data.offset,
    )
