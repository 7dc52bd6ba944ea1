"""One loaded model: a servable, the child process that runs it, and who uses it just now."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import Limits, Sandbox, Session
from squeezeflow.inference.engine import pack, unpack
from squeezeflow.inference.servable import ServableDigests
from squeezeflow.v1 import contract_pb2

# Opening reads the file, plans memory and invokes once; a call is one batch.
OPEN_SECONDS = 120.0
CALL_SECONDS = 120.0


class LoadedModel:
    """One servable in one child, opened when it is loaded, and again at the next call after its child died.

    Args:
        sandbox: where the child is forked.
        digests: what it serves.
        payload: for `engine.open_model`: paths of model and contract, threads.
        folder: where these files are; removed with the model.
        memory_mib: limit of the child.

    Attributes:
        contract: names, shapes and element types of its tensors; known once it was opened.
        fault: why its last child died; empty while none did.
        users: how many calls use it just now.
    """

    def __init__(
        self, sandbox: Sandbox, digests: ServableDigests, payload: dict[str, Any], *, folder: Path, memory_mib: int
    ) -> None:
        self.digests = digests
        self.contract = contract_pb2.Contract()
        self.fault = ""
        self.users = 0
        self._sandbox = sandbox
        self._payload = payload
        self._folder = folder
        self._limits = Limits(wall_seconds=OPEN_SECONDS, memory_mib=memory_mib)
        self._session: Session | None = None
        self._opening = asyncio.Lock()
        self._retired = False

    @property
    def ready(self) -> bool:
        """Whether a call would run at once."""
        return self._session is not None and self._session.alive

    async def open(self) -> Session:
        """Gives the live session, of a new child where there is none."""
        async with self._opening:
            if self._session is None:
                self.contract = await asyncio.to_thread(_without_samples, Path(self._payload["contract"]))
            if self._session is None or not self._session.alive:
                self._session = await self._sandbox.session(
                    "squeezeflow.inference.engine:open_model", self._payload, limits=self._limits
                )
            return self._session

    async def infer(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Runs the model once, in the file's own element types; calls of one model run one after another.

        Raises:
            SqueezeflowError: CHILD_CRASHED, OUT_OF_MEMORY and TIMED_OUT end the child; the next call opens another.
        """
        session = await self.open()
        tensors, buffers = pack(inputs)
        header = {"tensors": tensors, "outputs": list(outputs)}
        try:
            answer, data = await session.call(header, buffers, timeout=CALL_SECONDS)
        except SqueezeflowError as error:
            if not session.alive:
                self.fault = str(error)
            raise
        return unpack(answer["tensors"], data)

    async def retire(self) -> None:
        """Ends the model once nobody uses it any more."""
        self._retired = True
        await self.close_unused()

    async def close_unused(self) -> None:
        """Ends the child and removes the files of a model that is retired and not in use."""
        if self._retired and not self.users:
            await asyncio.shield(self.close())  # also when the last caller was cancelled

    async def close(self) -> None:
        """Ends the child now, and removes the files; calls under way fail. May be called again."""
        async with self._opening:
            if self._session is not None:
                await self._session.close()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


def _without_samples(path: Path) -> contract_pb2.Contract:
    """Reads a contract; its golden samples stay in the file, the service has no use for them."""
    contract = contracts.decode(path)
    contract.ClearField("golden_samples")
    return contract
