"""Between streams of messages and the store's blocking iterators, with one chunk ahead and never more in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import artifact_pb2, artifacts_pb2

IDLE_SECONDS = 60.0


async def receive(
    requests: AsyncIterator[artifacts_pb2.WriteArtifactRequest],
    artifacts: Artifacts,
    scratch: Path,
    *,
    idle_seconds: float = IDLE_SECONDS,
) -> artifact_pb2.Artifact:
    """Stores one upload.

    A client that stalls for `idle_seconds`, or vanishes, ends the upload; nothing of it stays.

    Raises:
        SqueezeflowError: INVALID_PARAMETER without a header first, TIMED_OUT, and what `Artifacts.write_stream` raises.
    """
    parts = _Parts(requests, idle_seconds)
    header = await parts.header()
    loop = asyncio.get_running_loop()

    def pull() -> Generator[bytes, None, None]:
        ahead: Future[bytes | None] = asyncio.run_coroutine_threadsafe(parts.chunk(), loop)
        try:
            while (chunk := ahead.result()) is not None:
                ahead = asyncio.run_coroutine_threadsafe(parts.chunk(), loop)
                yield chunk
        finally:
            ahead.cancel()

    def write() -> artifact_pb2.Artifact:
        with closing(pull()) as chunks:
            return artifacts.write_stream(header, chunks, scratch)

    try:
        return await asyncio.to_thread(write)
    finally:
        # The thread cannot be cancelled: it ends at its next chunk.
        parts.stop()


class _Parts:
    """The messages of an upload, one after another."""

    def __init__(self, requests: AsyncIterator[artifacts_pb2.WriteArtifactRequest], idle_seconds: float) -> None:
        self._requests = requests
        self._idle_seconds = idle_seconds
        self._stopped = asyncio.Event()

    async def header(self) -> artifacts_pb2.WriteArtifactHeader:
        """Gives the first message."""
        first = await self._next()
        if first is None or first.WhichOneof("part") != "header":
            raise SqueezeflowError("INVALID_PARAMETER", "an upload begins with its header: send kind, size and digest")
        return first.header

    async def chunk(self) -> bytes | None:
        """Gives the next bytes; None at the end."""
        following = await self._next()
        if following is None:
            return None
        if following.WhichOneof("part") != "chunk":
            raise SqueezeflowError("INVALID_PARAMETER", "an upload has one header: send every artifact by itself")
        return following.chunk

    def stop(self) -> None:
        """Ends the upload for whoever waits for its next message."""
        self._stopped.set()

    async def _next(self) -> artifacts_pb2.WriteArtifactRequest | None:
        reading = asyncio.ensure_future(anext(self._requests, None))
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({reading, stopped}, timeout=self._idle_seconds, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if self._stopped.is_set():
                raise SqueezeflowError("CANCELLED", "the upload was cut off")
            text = f"no bytes came for {self._idle_seconds:g} s: upload again over a connection that does not stall"
            raise SqueezeflowError("TIMED_OUT", text)
        finally:
            reading.cancel()
            stopped.cancel()


async def send(artifacts: Artifacts, digest: str) -> AsyncGenerator[artifacts_pb2.ReadArtifactResponse, None]:
    """Gives an artifact's description with its first bytes, then the rest."""
    response = artifacts_pb2.ReadArtifactResponse(artifact=await asyncio.to_thread(artifacts.stat, digest))
    chunks = _chunks(artifacts, digest)
    ahead = asyncio.ensure_future(asyncio.to_thread(next, chunks, b""))
    try:
        # Shielded: a thread that reads cannot be cancelled, only waited for.
        while chunk := await asyncio.shield(ahead):
            ahead = asyncio.ensure_future(asyncio.to_thread(next, chunks, b""))
            response.chunk = chunk
            yield response
            response = artifacts_pb2.ReadArtifactResponse()
        if response.HasField("artifact"):
            yield response
    finally:
        await asyncio.wait({ahead})
        await asyncio.to_thread(chunks.close)


def _chunks(artifacts: Artifacts, digest: str) -> Generator[bytes, None, None]:
    # Empty pieces would look like the end.
    yield from (chunk for chunk in artifacts.stream(digest) if chunk)
