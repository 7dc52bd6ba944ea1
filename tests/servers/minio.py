"""MinIO as the S3 server of tests, on machines that have its binary on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.processes import bound_to_parent, free_ports, s3_ready, stop

_ACCESS_KEY = "tests"
_SECRET_KEY = "tests-only"  # MinIO wants 8 characters


def available() -> bool:
    """Whether there is a `minio` on PATH."""
    return shutil.which("minio") is not None


@contextmanager
def minio(folder: Path) -> Iterator[str]:
    """Runs a server on a folder and gives the store URL of a bucket that does not exist at first."""
    binary = shutil.which("minio")
    if binary is None:
        raise RuntimeError("minio is not on PATH")
    port, console = free_ports(2)
    addresses = ["--address", f"127.0.0.1:{port}", "--console-address", f"127.0.0.1:{console}"]
    folder.mkdir(parents=True, exist_ok=True)
    keys = {"MINIO_ROOT_USER": _ACCESS_KEY, "MINIO_ROOT_PASSWORD": _SECRET_KEY, "MINIO_BROWSER": "off"}
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        process = subprocess.Popen(
            bound_to_parent([binary, "server", "--quiet", *addresses, str(folder)]),
            env={**os.environ, **keys},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        s3_ready(process, f"127.0.0.1:{port}", _ACCESS_KEY, _SECRET_KEY)
        yield f"s3://{_ACCESS_KEY}:{_SECRET_KEY}@127.0.0.1:{port}/squeezeflow?secure=false"
    finally:
        stop(process)
