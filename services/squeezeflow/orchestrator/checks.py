"""What CreateJob finds out before anything is queued: the artifacts are there, the model is sound, the data fits it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from squeezeflow.core.artifacts import DATA_KINDS, MODEL_KINDS, Artifacts
from squeezeflow.core.canonical import canonical_json, message_json, sha256_text
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import Store
from squeezeflow.orchestrator.plan import DataFacts
from squeezeflow.rpc.worker_calls import WorkerCalls
from squeezeflow.v1 import artifact_pb2, contract_pb2, converter_pb2, jobs_pb2, model_pb2, step_pb2

_REMEMBERED = 256
# Describing loads the model in a child; a converter that is still starting is waited for.
_DESCRIBE_SECONDS = 280.0


@dataclass(frozen=True)
class Findings:
    """What the checks found, all of it fit to plan with."""

    description: model_pb2.ModelDescription
    facts: DataFacts
    notes: tuple[str, ...]


class Checks:
    """Checks requests against the store and the converter.

    Args:
        converter: its gRPC target.
        scratch: folder for datasets while they are checked.
        wait_seconds: how long a converter that is not there is waited for.
    """

    def __init__(
        self, store: Store, workers: WorkerCalls, converter: str, scratch: Path, *, wait_seconds: float = 30.0
    ) -> None:
        self._store = store
        self._workers = workers
        self._converter = converter
        self._scratch = scratch
        self._wait_seconds = wait_seconds
        # One dataset at a time: checking reads all of it.
        self._reading = asyncio.Semaphore(1)
        self._known: OrderedDict[str, tuple[DataFacts, tuple[str, ...]]] = OrderedDict()

    async def run(self, tenant: str, spec: jobs_pb2.JobSpec) -> Findings:
        """Gives what is to be planned with.

        Raises:
            SqueezeflowError: NOT_FOUND, INVALID_PARAMETER (an artifact of the wrong kind), what DescribeModel finds,
                CODE_IN_MODEL, DATA_MISMATCH, STORE_UNAVAILABLE, WORKER_UNAVAILABLE.
        """
        artifacts = Artifacts(self._store, tenant)
        await asyncio.to_thread(_require, artifacts, spec.model.artifact, MODEL_KINDS, "spec.model.artifact", "model")
        if spec.data.artifact:
            await asyncio.to_thread(
                _require, artifacts, spec.data.artifact, DATA_KINDS, "spec.data.artifact", "dataset"
            )
        description = await self._describe(tenant, spec.model)
        if description.findings:
            found = "; ".join(description.findings[:8])
            raise SqueezeflowError(
                "CODE_IN_MODEL", f"the model carries code, which is never run: {found}: save it without"
            )
        _require_signature(description, spec.model.signature)
        facts, notes = DataFacts(), tuple[str, ...]()
        if spec.data.artifact:
            facts, notes = await self._data(tenant, spec, description.contract)
        return Findings(description, facts, notes)

    async def _describe(self, tenant: str, model: step_pb2.ModelInput) -> model_pb2.ModelDescription:
        patience = time.monotonic() + self._wait_seconds
        delay = 0.1
        while True:
            try:
                return await self._workers.ask(
                    self._converter,
                    "squeezeflow.v1.Converter/DescribeModel",
                    converter_pb2.DescribeModelRequest(model=model),
                    model_pb2.ModelDescription.FromString,
                    tenant=tenant,
                    timeout=_DESCRIBE_SECONDS,
                )
            except SqueezeflowError as error:
                if error.reason != "WORKER_UNAVAILABLE" or time.monotonic() > patience:
                    raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, 2.0)

    async def _data(
        self, tenant: str, spec: jobs_pb2.JobSpec, contract: contract_pb2.Contract
    ) -> tuple[DataFacts, tuple[str, ...]]:
        """Checks a dataset against the contract; the same pair is read once."""
        key = sha256_text(canonical_json([tenant, message_json(spec.data), message_json(contract)]))
        if key not in self._known:
            async with self._reading:
                known = await asyncio.to_thread(self._read, tenant, spec.data, contract)
            self._known[key] = known
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]

    def _read(
        self, tenant: str, data: step_pb2.DataInput, contract: contract_pb2.Contract
    ) -> tuple[DataFacts, tuple[str, ...]]:
        # numpy is not needed before the first dataset comes.
        from squeezeflow.core.datasets import Dataset

        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="data-", dir=self._scratch) as folder:
            path = Artifacts(self._store, tenant).fetch(data.artifact, Path(folder)).path
            bound = Dataset.open(path).bind(contract, scale=tuple(data.scale), offset=tuple(data.offset))
            facts = DataFacts(
                train=bool(bound.count("train")) and bound.has_targets("train"),
                calibration=bool(bound.count("calibration") or bound.count("train")),
                test=bool(bound.count("test")) and bound.has_targets("test"),
            )
            return facts, tuple(bound.notes)


def _require_signature(description: model_pb2.ModelDescription, wanted: str) -> None:
    """Refuses a model with several signatures of which none was chosen: its description then has no contract."""
    if wanted or len(description.signatures) < 2 or description.contract.inputs or description.contract.outputs:
        return
    names = ", ".join(description.signatures)
    raise SqueezeflowError(
        "INVALID_PARAMETER",
        f"the model has several signatures: set model.signature (--signature) to one of {names}",
        metadata={"signatures": names},
        fields=[("spec.model.signature", f"one of: {names}")],
    )


def _require(artifacts: Artifacts, digest: str, kinds: Collection[int], field: str, what: str) -> None:
    artifact = artifacts.stat(digest)
    if artifact.kind not in kinds:
        name = artifact_pb2.ArtifactKind.Name(artifact.kind).removeprefix("ARTIFACT_KIND_")
        message = f"artifact {digest} is a {name}, not a {what}: give the digest of the {what}"
        raise SqueezeflowError("INVALID_PARAMETER", message, fields=[(field, message)])
