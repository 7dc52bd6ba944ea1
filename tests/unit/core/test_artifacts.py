from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.artifacts_suite import ArtifactsSuite, make_file
from tests.store_suite import refusal

from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.store import Store, open_store
from squeezeflow.v1.artifact_pb2 import ARTIFACT_KIND_KERAS


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
