"""Describes a stored model in a sandbox child: what it is, and what each technique would do with it."""

from __future__ import annotations

import asyncio
import base64
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

from squeezeflow.core.config import ServiceConfig
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import Limits, Sandbox
from squeezeflow.core.step import ArtifactPath
from squeezeflow.rpc.steps import StepRunner
from squeezeflow.v1 import model_pb2, step_pb2

# A description loads the model and runs nothing.
_WALL_SECONDS = 300.0
_REMEMBERED = 64


class Describer:
    """Runs `converter.describe` in a child; the same model is described once.

    Args:
        config: memory limit and scratch folder.
        runner: gives the artifacts of a tenant.
        sandbox: where the model is loaded.
    """

    def __init__(self, config: ServiceConfig, runner: StepRunner, sandbox: Sandbox) -> None:
        self._config = config
        self._runner = runner
        self._sandbox = sandbox
        # Loading is bounded like steps are; what waits longer than a caller's deadline is dropped by gRPC.
        self._slots = asyncio.Semaphore(config.max_concurrent_steps)
        self._known: OrderedDict[tuple[str, str, str], model_pb2.ModelDescription] = OrderedDict()

    async def describe(self, tenant: str, model: step_pb2.ModelInput) -> model_pb2.ModelDescription:
        """Gives the description; raises NOT_FOUND, MALFORMED_MODEL, UNSUPPORTED_INPUT, INVALID_PARAMETER."""
        key = (tenant, model.artifact, model.signature)
        if key not in self._known:
            artifact = await asyncio.to_thread(self._runner.artifacts(tenant).stat, model.artifact)
            description = await self._run(tenant, model)
            description.artifact.CopyFrom(artifact)
            self._known[key] = description
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]

    async def _run(self, tenant: str, model: step_pb2.ModelInput) -> model_pb2.ModelDescription:
        async with self._slots:
            self._config.workdir.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="describe-", dir=self._config.workdir))
            try:
                path = await asyncio.to_thread(self._runner.artifacts(tenant).fetch, model.artifact, folder)
                return await self._describe(path, model.signature)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _describe(self, model: ArtifactPath, signature: str) -> model_pb2.ModelDescription:
        child = await self._sandbox.run(
            "squeezeflow.converter.describe:describe",
            {"artifact": [model.kind, str(model.path)], "signature": signature},
            limits=Limits(wall_seconds=_WALL_SECONDS, memory_mib=self._config.step_memory_mib),
        )
        try:
            return model_pb2.ModelDescription.FromString(base64.b64decode(child.value["description"]))
        except (KeyError, ValueError) as error:
            raise SqueezeflowError("INTERNAL", f"the describing child gave no description: {error}") from error
