"""Every real S3 server that this machine can offer to a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import minio
from tests.servers.seaweedfs import seaweedfs

_NAMED = "SQUEEZEFLOW_TEST_S3"


def servers() -> list[str]:
    """Names them: SeaweedFS always, `minio` when it is on PATH, and the one whose store URL the environment holds."""
    return ["seaweedfs"] + ["minio"] * minio.available() + ["named"] * bool(os.environ.get(_NAMED))


@contextmanager
def running(server: str, folder: Path) -> Iterator[str]:
    """Runs the server on a folder, where it is not running already, and gives a store URL."""
    if server == "named":
        yield os.environ[_NAMED]
    else:
        with (seaweedfs if server == "seaweedfs" else minio.minio)(folder) as url:
            yield url
