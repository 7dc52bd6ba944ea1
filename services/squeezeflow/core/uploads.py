"""Bytes on their way to or from an artifact, on this machine's disk: bounded while they come, named by what came."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.folders import unpack_tar
from squeezeflow.core.kinds import FOLDER_KINDS
from squeezeflow.v1.artifacts_pb2 import WriteArtifactHeader


def spool(header: WriteArtifactHeader, chunks: Iterable[bytes], path: Path) -> str:
    """Writes an upload to a new file or folder and gives its digest.

    Raises:
        SqueezeflowError: more or fewer bytes than announced: MALFORMED_MODEL for a tar that goes on, else
            DIGEST_MISMATCH; MALFORMED_MODEL for a tar that `read_tar` refuses.
    """
    bounded = _Bounded(header, chunks)
    if header.kind in FOLDER_KINDS:
        digest = unpack_tar(bounded, path, max_bytes=header.size_bytes)
    else:
        digest = copy(bounded, path)
    bounded.expect_all()
    return digest


def copy(chunks: Iterable[bytes], path: Path) -> str:
    """Writes chunks to a file and gives their digest."""
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            sha256.update(chunk)
            file.write(chunk)
    return sha256.hexdigest()


def remove(path: Path) -> None:
    """Removes a file, link or folder; there need not be one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(scratch: Path) -> Iterator[Path]:
    """Gives a new folder below `scratch`, which is gone afterwards."""
    with disk_failures(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="upload-", dir=scratch))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def disk_failures(folder: Path) -> Iterator[None]:
    """Turns errors of the disk below a working folder into STORE_UNAVAILABLE: a retry may find space."""
    try:
        yield
    except OSError as error:
        raise SqueezeflowError(
            "STORE_UNAVAILABLE",
            f"the working folder {folder} cannot be used: {error.strerror or error}; free space there or move it",
            metadata={"folder": folder},
        ) from error


class _Bounded:
    """Passes on the chunks of an upload, no more than were announced."""

    def __init__(self, header: WriteArtifactHeader, chunks: Iterable[bytes]) -> None:
        self._header = header
        self._chunks = chunks
        self._total = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._total += len(chunk)
            if self._total > self._header.size_bytes:
                reason = "MALFORMED_MODEL" if self._header.kind in FOLDER_KINDS else "DIGEST_MISMATCH"
                raise self._other_size(reason, "more")
            yield chunk

    def expect_all(self) -> None:
        """Refuses an upload that ended early."""
        if self._total != self._header.size_bytes:
            raise self._other_size("DIGEST_MISMATCH", str(self._total))

    def _other_size(self, reason: str, got: str) -> SqueezeflowError:
        return SqueezeflowError(
            reason, f"{self._header.size_bytes} bytes were announced and {got} came; announce the size of what is sent"
        )
