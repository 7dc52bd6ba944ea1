"""`Artifacts`: bytes in and out of the store for clients that do not reach it themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from squeezeflow.core.actions import ActionCache
from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.store import Store
from squeezeflow.orchestrator import transfers
from squeezeflow.rpc.tenant import current_tenant
from squeezeflow.v1 import artifact_pb2, artifacts_pb2, artifacts_pb2_grpc

_PAGE = 100
_MOST_ACTIONS = 1000


class ArtifactsService(artifacts_pb2_grpc.ArtifactsServicer):
    """Serves `Artifacts` over a store.

    Args:
        scratch: folder for uploads until they are whole.
    """

    def __init__(self, store: Store, scratch: Path) -> None:
        self._store = store
        self._scratch = scratch

    async def WriteArtifact(
        self, requests: AsyncIterator[artifacts_pb2.WriteArtifactRequest], context: Any
    ) -> artifact_pb2.Artifact:
        return await transfers.receive(requests, self._artifacts(), self._scratch)

    async def ReadArtifact(
        self, request: artifacts_pb2.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[artifacts_pb2.ReadArtifactResponse]:
        async for response in transfers.send(self._artifacts(), request.digest):
            yield response

    async def GetArtifact(self, request: artifacts_pb2.GetArtifactRequest, context: Any) -> artifact_pb2.Artifact:
        return await asyncio.to_thread(self._artifacts().stat, request.digest)

    async def ListArtifacts(
        self, request: artifacts_pb2.ListArtifactsRequest, context: Any
    ) -> artifacts_pb2.ListArtifactsResponse:
        artifacts, token = await asyncio.to_thread(
            self._artifacts().list, page_size=request.page_size or _PAGE, page_token=request.page_token
        )
        return artifacts_pb2.ListArtifactsResponse(artifacts=artifacts, next_page_token=token)

    async def GetLineage(
        self, request: artifacts_pb2.GetLineageRequest, context: Any
    ) -> artifacts_pb2.GetLineageResponse:
        await asyncio.to_thread(self._artifacts().stat, request.digest)
        actions = await asyncio.to_thread(ActionCache(self._store, current_tenant()).lineage, request.digest)
        return artifacts_pb2.GetLineageResponse(actions=actions[:_MOST_ACTIONS])

    def _artifacts(self) -> Artifacts:
        return Artifacts(self._store, current_tenant())
