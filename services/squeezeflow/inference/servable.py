"""From what a caller names (an artifact, perhaps a contract) to what can be run: a TFLite file and its contract.

Where no contract is given it is that of the newest action record that produced the bytes, else one made from the file's
own signature or tensor names (in a child: the service reads no model itself).
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from squeezeflow.core.actions import ActionCache
from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import Limits, Sandbox
from squeezeflow.v1 import artifact_pb2

_DIGEST = re.compile(r"[0-9a-f]{64}")
# Reading names and shapes of a file is quick; a file that takes longer is made to.
_LIMITS = Limits(wall_seconds=60.0, memory_mib=2048)


def is_digest(text: str) -> bool:
    """Tells whether a text has the form of a digest."""
    return _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True)
class ServableDigests:
    """A TFLite artifact and the contract it is used by."""

    artifact: str
    contract: str


@dataclass(frozen=True)
class Resolver:
    """Resolves servables of every tenant.

    Attributes:
        artifacts: of a tenant.
        records: of a tenant's actions.
        sandbox: where contracts of foreign files are made.
        workdir: scratch folder.
    """

    artifacts: Callable[[str], Artifacts]
    records: Callable[[str], ActionCache]
    sandbox: Sandbox
    workdir: Path

    async def resolve(self, tenant: str, artifact: str, contract: str = "") -> ServableDigests:
        """Gives an artifact's digest with that of its contract.

        Raises:
            SqueezeflowError: NOT_FOUND, UNSUPPORTED_INPUT (not TFLite), INVALID_PARAMETER (the contract is none),
                MALFORMED_MODEL (a foreign file that cannot be read), STORE_UNAVAILABLE.
        """
        artifacts = self.artifacts(tenant)
        await asyncio.to_thread(_check_kinds, artifacts, artifact, contract)
        contract = contract or await asyncio.to_thread(_recorded, self.records(tenant), artifact)
        return ServableDigests(artifact, contract or await self._foreign(artifacts, artifact))

    async def fetch(self, tenant: str, servable: ServableDigests, folder: Path) -> tuple[Path, Path]:
        """Puts a servable's file and contract below a folder, verified, and gives both paths."""
        artifacts = self.artifacts(tenant)

        def both() -> tuple[Path, Path]:
            folder.mkdir(parents=True, exist_ok=True)
            return artifacts.fetch(servable.artifact, folder).path, artifacts.fetch(servable.contract, folder).path

        return await asyncio.to_thread(both)

    async def _foreign(self, artifacts: Artifacts, artifact: str) -> str:
        """Makes and stores the contract of a file that no step of ours produced."""
        await asyncio.to_thread(self.workdir.mkdir, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="contract-", dir=self.workdir) as folder:
            model = await asyncio.to_thread(artifacts.fetch, artifact, Path(folder))
            made = Path(folder) / "made.json"
            payload = {"model": str(model.path), "contract": str(made)}
            await self.sandbox.run("squeezeflow.inference.engine:foreign_contract", payload, limits=_LIMITS)
            stored = await asyncio.to_thread(artifacts.write, artifact_pb2.ARTIFACT_KIND_CONTRACT, made)
            return stored.digest


def _check_kinds(artifacts: Artifacts, artifact: str, contract: str) -> None:
    kind = artifacts.stat(artifact).kind
    if kind != artifact_pb2.ARTIFACT_KIND_TFLITE:
        name = artifact_pb2.ArtifactKind.Name(kind).removeprefix("ARTIFACT_KIND_")
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"artifact {artifact} is {name}: inference runs TFLITE only, convert it first",
            metadata={"artifact": artifact, "kind": name},
        )
    if contract and artifacts.stat(contract).kind != artifact_pb2.ARTIFACT_KIND_CONTRACT:
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"artifact {contract} is no contract: give the digest of one, or leave it out",
            metadata={"contract": contract},
        )


def _recorded(cache: ActionCache, artifact: str) -> str:
    """Gives the contract of the newest record that produced the artifact with one; empty where there is none."""
    named = (output for record in cache.producers(artifact) for output in record.outputs if output.name == "contract")
    return next((output.digest for output in named), "")
