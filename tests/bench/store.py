"""1 GiB of incompressible bytes through the store interface, against the MinIO SDK alone on the same server.

Rounds are interleaved, since the machine is never quiet; the ratio is the median over rounds. Memory is the growth of
this process's peak during our part. What verification costs is told apart: artifacts hash what they move.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import minio
from tests.servers.seaweedfs import seaweedfs

from squeezeflow.core.artifacts import Artifacts, file_digest
from squeezeflow.core.folders import read_chunks
from squeezeflow.core.store import Store, open_store
from squeezeflow.core.store.url import S3Location, parse
from squeezeflow.v1.artifact_pb2 import ARTIFACT_KIND_DATASET

SIZE_MIB = 1024
ROUNDS = 3
BLOCK = 16 << 20
LEAST_RATIO = 0.8


class Speeds:
    """MiB/s by name, one entry a round, and the largest growth of this process's peak memory."""

    def __init__(self, size_mib: int) -> None:
        self.size_mib = size_mib
        self.rounds: dict[str, list[float]] = defaultdict(list)
        self.growth_mib = 0.0

    def time(self, name: str, work: Callable[[], object]) -> None:
        """Times a call that moves all bytes once."""
        began = time.perf_counter()
        work()
        self.rounds[name].append(self.size_mib / (time.perf_counter() - began))

    def time_ours(self, name: str, work: Callable[[], object]) -> None:
        """Times a call and looks at the memory that it takes."""
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = _memory_mib("VmRSS")
        self.time(name, work)
        self.growth_mib = max(self.growth_mib, _memory_mib("VmHWM") - before)

    def median(self, name: str) -> float:
        """Gives the median over rounds."""
        return statistics.median(self.rounds[name])

    def ratio(self, ours: str, theirs: str) -> float:
        """Gives the median of the rounds' ratios."""
        pairs = zip(self.rounds[ours], self.rounds[theirs], strict=True)
        return statistics.median(our / their for our, their in pairs)


def measure(size_mib: int = SIZE_MIB, rounds: int = ROUNDS) -> dict[str, Any]:
    """Moves the bytes up and down and gives MiB/s, ratios and peak memory growth."""
    speeds = Speeds(size_mib)
    with tempfile.TemporaryDirectory() as text, seaweedfs(Path(text) / "server") as url:
        source = Path(text) / "big.npz"
        with source.open("wb") as file:
            for _ in range(size_mib * (1 << 20) // BLOCK):
                file.write(os.urandom(BLOCK))
        store, folder = open_store(url), open_store(f"dir:{text}/store")
        compare_with_sdk(speeds, url, store, source, rounds)
        speeds.time("dir_put", lambda: put(folder, source))
        speeds.time("dir_get", lambda: get(folder))
        with_verification(speeds, "s3", store, source)
        with_verification(speeds, "dir", folder, source)
        speeds.time("sha256", lambda: file_digest(source))
    return {
        "size_mib": size_mib,
        "put_ratio": speeds.ratio("put", "sdk_put"),
        "get_ratio": speeds.ratio("get", "sdk_get"),
        "memory_growth_mib": speeds.growth_mib,
        "mib_per_s": {name: speeds.median(name) for name in speeds.rounds},
    }


def compare_with_sdk(speeds: Speeds, url: str, store: Store, source: Path, rounds: int) -> None:
    """Interleaves our transfers with those of the SDK alone."""
    location = parse(url)
    assert isinstance(location, S3Location)
    sdk = minio.Minio(location.endpoint, location.access_key, location.secret_key, secure=False)
    store.check()
    for _ in range(rounds):
        speeds.time("sdk_put", lambda: sdk_put(sdk, location.bucket, source))
        speeds.time_ours("put", lambda: put(store, source))
        speeds.time("sdk_get", lambda: sdk_get(sdk, location.bucket))
        speeds.time_ours("get", lambda: get(store))


def with_verification(speeds: Speeds, name: str, store: Store, source: Path) -> None:
    """Times artifacts, which hash what they move."""
    artifacts = Artifacts(store, "bench")
    digest = file_digest(source)
    speeds.time_ours(f"{name}_artifact_write", lambda: artifacts.write(ARTIFACT_KIND_DATASET, source))
    speeds.time_ours(f"{name}_artifact_fetch", lambda: artifacts.fetch(digest, source.parent / "out"))


def put(store: Store, source: Path) -> None:
    """Puts a file through the interface."""
    store.put("bench/ours", read_chunks(source), size=source.stat().st_size)


def get(store: Store) -> None:
    """Gets an object through the interface and drops it."""
    for _ in store.get("bench/ours"):
        continue


def sdk_put(sdk: minio.Minio, bucket: str, source: Path) -> None:
    """Puts a file by the SDK as it comes."""
    with source.open("rb") as file:
        sdk.put_object(bucket, "bench/sdk", file, source.stat().st_size)


def sdk_get(sdk: minio.Minio, bucket: str) -> None:
    """Gets an object by the SDK and drops it."""
    response = sdk.get_object(bucket, "bench/sdk")
    for _ in response.stream(1 << 20):
        continue
    response.release_conn()


def _memory_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the kernel does not tell {field}")


def main() -> None:
    """Prints a table and the figures as JSON; ends with 1 when a ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=SIZE_MIB)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    figures = measure(options.size_mib, options.rounds)
    for name, speed in figures["mib_per_s"].items():
        print(f"{name:20} {speed:8.0f} MiB/s")
    for name in ("put", "get"):
        print(f"{name:20} {figures[f'{name}_ratio']:8.2f} of the SDK's throughput (at least {LEAST_RATIO})")
    print(f"{'memory growth':20} {figures['memory_growth_mib']:8.0f} MiB")
    print(json.dumps(figures))
    sys.exit(min(figures["put_ratio"], figures["get_ratio"]) < LEAST_RATIO)


if __name__ == "__main__":
    main()
