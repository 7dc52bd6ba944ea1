from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
from tests.artifacts_suite import ArtifactsSuite, files, make_file
from tests.store_suite import refusal

from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.store import Store, open_store
from squeezeflow.v1.artifact_pb2 import ARTIFACT_KIND_KERAS
from squeezeflow.v1.artifacts_pb2 import WriteArtifactHeader


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(f"dir:{tmp_path_factory.mktemp('store')}")


@pytest.fixture
def tenant() -> str:
    return "default"


class TestArtifactsInAFolder(ArtifactsSuite):
    pass


def test_a_store_that_is_down_is_neither_empty_nor_damaged(tmp_path: Path) -> None:
    artifacts = Artifacts(open_store(f"dir:{tmp_path}/store"), "default")
    written = artifacts.write(ARTIFACT_KIND_KERAS, make_file(tmp_path))
    shutil.move(tmp_path / "store", tmp_path / "away")
    for call in (
        lambda: artifacts.stat(written.digest),
        lambda: artifacts.usable(written.digest),
        lambda: artifacts.list(),
        lambda: artifacts.fetch(written.digest, tmp_path / "out"),
        lambda: list(artifacts.stream(written.digest)),
        lambda: artifacts.write(ARTIFACT_KIND_KERAS, make_file(tmp_path)),
    ):
        assert refusal(call).reason == "STORE_UNAVAILABLE"
    shutil.move(tmp_path / "away", tmp_path / "store")
    assert artifacts.usable(written.digest)


def test_a_full_working_disk_is_told_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    artifacts = Artifacts(store, "default")
    written = artifacts.write(ARTIFACT_KIND_KERAS, make_file(tmp_path, bytes(200_000)))
    announced = WriteArtifactHeader(kind=written.kind, size_bytes=written.size_bytes, digest=written.digest)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        errors = [
            refusal(lambda: artifacts.fetch(written.digest, tmp_path / "out")),
            refusal(lambda: artifacts.write_stream(announced, [bytes(200_000)], tmp_path / "out")),
        ]
        told = all(error.reason == "STORE_UNAVAILABLE" and "free space" in error.message for error in errors)
        os._exit(0 if told else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert files(tmp_path / "out") == []
    assert artifacts.usable(written.digest)
