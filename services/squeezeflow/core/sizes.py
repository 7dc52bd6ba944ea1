"""Raw and deflated bytes of an artifact: what a disk and what a download see."""

from __future__ import annotations

import zlib
from pathlib import Path

from squeezeflow.v1 import step_pb2

CHUNK = 1 << 20


def sizes_of(path: Path) -> step_pb2.Sizes:
    """Gives the bytes of a file, and of `zlib.compress(file, 9)`; of a folder, the sums over its files.

    The file is streamed: memory stays flat whatever its size.
    """
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    raw = deflated = 0
    for file in files:
        file_raw, file_deflated = _file_sizes(file)
        raw += file_raw
        deflated += file_deflated
    return step_pb2.Sizes(raw_bytes=raw, deflated_bytes=deflated)


def _file_sizes(path: Path) -> tuple[int, int]:
    compressor = zlib.compressobj(9)
    raw = deflated = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            raw += len(chunk)
            deflated += len(compressor.compress(chunk))
    return raw, deflated + len(compressor.flush())
