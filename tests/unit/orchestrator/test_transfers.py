"""Uploads and downloads between streams of messages and a real folder store."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squeezeflow.core.artifacts import Artifacts, folder_digest, folder_tar, tar_size
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import open_store
from squeezeflow.orchestrator.transfers import receive, send
from squeezeflow.v1 import artifact_pb2, artifacts_pb2

CHUNK = 1 << 20
TFLITE = artifact_pb2.ARTIFACT_KIND_TFLITE


class Desk:
    """A store, a scratch folder, and uploads to them."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.scratch = folder / "scratch"
        self.artifacts = Artifacts(open_store(f"dir:{self.store}"), "default")

    async def upload(self, messages: AsyncIterator[artifacts_pb2.WriteArtifactRequest], idle: float = 20.0) -> str:
        upload = receive(messages, self.artifacts, self.scratch, idle_seconds=idle)
        return (await asyncio.wait_for(upload, 30)).digest

    async def refused(self, messages: AsyncIterator[artifacts_pb2.WriteArtifactRequest], idle: float = 20.0) -> str:
        with pytest.raises(SqueezeflowError) as caught:
            await self.upload(messages, idle)
        await self.nothing_left()
        return caught.value.reason

    async def nothing_left(self) -> None:
        """Waits until the scratch folder is empty, and finds no artifact."""
        async with asyncio.timeout(20):
            while self.scratch.exists() and any(self.scratch.iterdir()):
                await asyncio.sleep(0.01)
        assert self.artifacts.list()[0] == []


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def header(data: bytes, **fields: object) -> artifacts_pb2.WriteArtifactRequest:
    values = {"kind": TFLITE, "size_bytes": len(data), "digest": hashlib.sha256(data).hexdigest(), **fields}
    return artifacts_pb2.WriteArtifactRequest(header=artifacts_pb2.WriteArtifactHeader(**values))


async def messages(
    first: artifacts_pb2.WriteArtifactRequest, data: bytes
) -> AsyncIterator[artifacts_pb2.WriteArtifactRequest]:
    yield first
    for start in range(0, len(data), CHUNK):
        yield artifacts_pb2.WriteArtifactRequest(chunk=data[start : start + CHUNK])


async def read(desk: Desk, digest: str) -> tuple[artifact_pb2.Artifact, bytes, list[int]]:
    responses = [response async for response in send(desk.artifacts, digest)]
    assert [response.HasField("artifact") for response in responses] == [True] + [False] * (len(responses) - 1)
    sizes = [len(response.chunk) for response in responses]
    return responses[0].artifact, b"".join(response.chunk for response in responses), sizes


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, 5 * CHUNK + 7])
async def test_what_was_uploaded_comes_back(desk: Desk, size: int) -> None:
    data = os.urandom(size)
    digest = await desk.upload(messages(header(data), data))
    artifact, found, sizes = await read(desk, digest)
    assert found == data
    assert (artifact.digest, artifact.kind, artifact.size_bytes) == (digest, TFLITE, size)
    assert max(sizes) <= CHUNK
    assert list(desk.scratch.iterdir()) == []


async def test_a_folder_travels_as_tar(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    data = b"".join(folder_tar(folder))
    kind = artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
    first = header(data, kind=kind, size_bytes=tar_size(folder), digest=folder_digest(folder))
    digest = await desk.upload(messages(first, data))
    assert (await read(desk, digest))[1] == data


async def test_wrong_bytes_never_become_an_artifact(desk: Desk) -> None:
    data = os.urandom(2 * CHUNK)
    for sent in (data[:-1], data + b"x", bytes(len(data))):
        assert await desk.refused(messages(header(data), sent)) == "DIGEST_MISMATCH"


async def test_an_upload_begins_with_one_header(desk: Desk) -> None:
    chunk = artifacts_pb2.WriteArtifactRequest(chunk=b"x")

    async def empty() -> AsyncIterator[artifacts_pb2.WriteArtifactRequest]:
        return
        yield

    async def twice() -> AsyncIterator[artifacts_pb2.WriteArtifactRequest]:
        yield header(b"xx")
        yield header(b"xx")

    assert await desk.refused(messages(chunk, b"x")) == "INVALID_PARAMETER"
    assert await desk.refused(empty()) == "INVALID_PARAMETER"
    assert await desk.refused(twice()) == "INVALID_PARAMETER"


async def test_a_client_that_stalls_is_sent_away(desk: Desk) -> None:
    async def stalling() -> AsyncIterator[artifacts_pb2.WriteArtifactRequest]:
        yield header(bytes(2 * CHUNK))
        yield artifacts_pb2.WriteArtifactRequest(chunk=bytes(CHUNK))
        await asyncio.sleep(3600)

    assert await desk.refused(stalling(), idle=0.1) == "TIMED_OUT"


async def test_a_client_that_vanishes_leaves_nothing(desk: Desk) -> None:
    waits = asyncio.Event()

    async def vanishing() -> AsyncIterator[artifacts_pb2.WriteArtifactRequest]:
        yield header(bytes(2 * CHUNK))
        yield artifacts_pb2.WriteArtifactRequest(chunk=bytes(CHUNK))
        waits.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(desk.upload(vanishing()))
    await asyncio.wait_for(waits.wait(), 20)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    await desk.nothing_left()


async def test_a_broken_stream_leaves_nothing(desk: Desk) -> None:
    async def breaking() -> AsyncIterator[artifacts_pb2.WriteArtifactRequest]:
        yield header(bytes(2 * CHUNK))
        yield artifacts_pb2.WriteArtifactRequest(chunk=bytes(CHUNK))
        raise RuntimeError("reset")

    with pytest.raises(RuntimeError, match="reset"):
        await desk.upload(breaking())
    await desk.nothing_left()


async def test_a_flipped_bit_in_the_store_is_told_on_the_way(desk: Desk) -> None:
    data = os.urandom(3 * CHUNK)
    digest = await desk.upload(messages(header(data), data))
    blob = desk.store / "tenants" / "default" / "blobs" / digest
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(bytes(damaged))
    with pytest.raises(SqueezeflowError, match="write it again") as caught:
        await read(desk, digest)
    assert caught.value.reason == "DIGEST_MISMATCH"


async def test_a_download_that_is_broken_off_lets_go_of_the_store(desk: Desk) -> None:
    data = os.urandom(4 * CHUNK)
    digest = await desk.upload(messages(header(data), data))
    download = send(desk.artifacts, digest)
    assert (await anext(download)).artifact.digest == digest
    await asyncio.wait_for(download.aclose(), 20)
    assert (await read(desk, digest))[1] == data


async def test_what_is_not_there_cannot_be_read(desk: Desk) -> None:
    with pytest.raises(SqueezeflowError) as caught:
        await read(desk, "0" * 64)
    assert caught.value.reason == "NOT_FOUND"
