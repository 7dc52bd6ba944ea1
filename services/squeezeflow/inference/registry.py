"""Which models are loaded, for which tenant, under which name; each in a child process of its own.

A name is bound by a caller and stays until it is unloaded or bound anew. A digest is loaded at its first use and makes
room again when it is the longest unused. A binding is replaced in one moment: calls under way end on the old model.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import Sandbox
from squeezeflow.inference.loaded import LoadedModel
from squeezeflow.inference.servable import Resolver, ServableDigests, is_digest

# Loaded models of all tenants together: each is a process with its interpreter.
MAX_MODELS = 16
# Calls of one model that run or wait; each holds its tensors.
MAX_CALLS = 32


class Registry:
    """The loaded models of all tenants.

    Args:
        resolver: from digests to files.
        sandbox: where models run.
        workdir: where the files of loaded models lie.
        threads: of one interpreter.
        memory_mib: limit of one model's child.
        max_models: most that are loaded at the same time.
    """

    def __init__(
        self,
        resolver: Resolver,
        sandbox: Sandbox,
        *,
        workdir: Path,
        threads: int,
        memory_mib: int,
        max_models: int = MAX_MODELS,
    ) -> None:
        self._resolver = resolver
        self._sandbox = sandbox
        self._workdir = workdir
        self._threads = threads
        self._memory_mib = memory_mib
        self._max_models = max_models
        self._models: OrderedDict[tuple[str, str], LoadedModel] = OrderedDict()
        self._loading = 0
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    @property
    def ready(self) -> bool:
        """Whether models can be loaded: there is a process that forks children for them."""
        return bool(self._sandbox.server_pid)

    async def close(self) -> None:
        """Ends all models; calls under way fail. May be called again."""
        models = list(self._models.values())
        self._models.clear()
        await asyncio.gather(*(model.close() for model in models))

    async def load(self, tenant: str, name: str, artifact: str, contract: str = "") -> None:
        """Binds a name to an artifact; where this fails, what the name was bound to stays.

        Raises:
            SqueezeflowError: what resolving and opening raise; OVERLOADED when too many models are loaded.
        """
        async with self._lock(tenant, name):
            await self._load(tenant, name, artifact, contract)

    async def unload(self, tenant: str, name: str) -> None:
        """Ends a binding. Raises NOT_FOUND."""
        async with self._lock(tenant, name):
            model = self._models.pop((tenant, name), None)
            if model is None:
                raise _unknown(name)
            await model.retire()

    @asynccontextmanager
    async def use(self, tenant: str, name: str) -> AsyncIterator[LoadedModel]:
        """Gives the model of a name or digest for one call, loading a digest first where it is not loaded.

        Raises:
            SqueezeflowError: NOT_FOUND; OVERLOADED when too many calls of it wait; what loading raises.
        """
        model = self._models.get((tenant, name)) or await self._load_digest(tenant, name)
        if model.users >= MAX_CALLS:
            raise SqueezeflowError(
                "OVERLOADED",
                f"{model.users} calls of model {name} run or wait: try again later",
                metadata={"retry_after_seconds": 1},
            )
        model.users += 1
        try:
            self._models.move_to_end((tenant, name))
            yield model
        finally:
            model.users -= 1
            await model.close_unused()

    def find(self, tenant: str, name: str) -> LoadedModel | None:
        """Gives a loaded model without loading or touching it."""
        return self._models.get((tenant, name))

    def index(self, tenant: str) -> list[tuple[str, LoadedModel]]:
        """Gives the tenant's loaded models by name."""
        return sorted((name, model) for (owner, name), model in self._models.items() if owner == tenant)

    async def _load_digest(self, tenant: str, name: str) -> LoadedModel:
        if not is_digest(name):
            raise _unknown(name)
        async with self._lock(tenant, name):
            return self._models.get((tenant, name)) or await self._load(tenant, name, name, "")

    async def _load(self, tenant: str, name: str, artifact: str, contract: str) -> LoadedModel:
        """Loads and puts a model in its place; the caller holds the name's lock."""
        victim = None if (tenant, name) in self._models else self._make_room()
        self._loading += 1
        try:
            if victim is not None:
                await victim.retire()
            model = await self._open(tenant, await self._resolver.resolve(tenant, artifact, contract))
        finally:
            self._loading -= 1
        replaced = self._models.pop((tenant, name), None)
        self._models[tenant, name] = model
        if replaced is not None:
            await replaced.retire()
        return model

    async def _open(self, tenant: str, digests: ServableDigests) -> LoadedModel:
        await asyncio.to_thread(self._workdir.mkdir, parents=True, exist_ok=True)
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="model-", dir=self._workdir))
        try:
            model, contract = await self._resolver.fetch(tenant, digests, folder)
            payload = {"model": str(model), "contract": str(contract), "threads": self._threads}
            loaded = LoadedModel(self._sandbox, digests, payload, folder=folder, memory_mib=self._memory_mib)
            await loaded.open()
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        return loaded

    def _make_room(self) -> LoadedModel | None:
        """Takes the longest unused model that a digest loaded out, where there is no room for one more."""
        if len(self._models) + self._loading < self._max_models:
            return None
        idle = (key for key, model in self._models.items() if is_digest(key[1]) and not model.users)
        victim = next(idle, None)
        if victim is None:
            raise SqueezeflowError(
                "OVERLOADED",
                f"{self._max_models} models are loaded and in use: unload one, or try again later",
                metadata={"max_models": self._max_models},
            )
        return self._models.pop(victim)

    def _lock(self, tenant: str, name: str) -> asyncio.Lock:
        return self._locks.setdefault((tenant, name), asyncio.Lock())


def _unknown(name: str) -> SqueezeflowError:
    return SqueezeflowError(
        "NOT_FOUND",
        f"no model {name!r} is loaded: bind the name with RepositoryModelLoad, or use an artifact's digest",
        metadata={"model": name},
    )
