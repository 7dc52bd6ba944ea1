"""Server processes of tests: free ports, a life that ends with the parent's, waiting for readiness."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

import minio
import urllib3

# Linux ends the program with its parent, also when that was killed; set before exec, for it survives exec.
_BIND = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound_to_parent(command: Sequence[str]) -> list[str]:
    """Gives a command that runs `command`, an absolute path first, and dies with the process that starts it."""
    return [sys.executable, "-S", "-c", _BIND, str(os.getpid()), *command]


def free_ports(count: int) -> list[int]:
    """Gives ports of the loopback address that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and waits for its end."""
    process.kill()
    process.wait()


def s3_ready(
    process: subprocess.Popen[bytes], endpoint: str, access_key: str, secret_key: str, *, seconds: float = 60
) -> None:
    """Waits until an S3 server stores and gives back an object; RuntimeError when it ends or takes too long."""
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=1, read=5), retries=False)
    client = minio.Minio(endpoint, access_key, secret_key, secure=False, http_client=pool)
    deadline = time.monotonic() + seconds
    while True:
        try:
            if not client.bucket_exists("ready"):
                client.make_bucket("ready")
            client.put_object("ready", "probe", io.BytesIO(b"1"), 1)
            return
        except (minio.error.MinioException, urllib3.exceptions.HTTPError) as error:
            if process.poll() is not None:
                raise RuntimeError(f"it ended with {process.returncode}") from error
            if time.monotonic() > deadline:
                raise RuntimeError(f"it is not ready after {seconds:g} s: {error}") from error
            time.sleep(0.1)
