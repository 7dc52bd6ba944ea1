"""Folders as artifacts: which files count, the digest of their entries, and their canonical tar."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from squeezeflow.core.canonical import canonical_json, sha256_text
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.tar import END, TarFile, header, padding, path_fault, read_tar

CHUNK_BYTES = 1 << 20
MAX_ENTRIES = 10_000


@dataclass(frozen=True)
class FolderFile:
    """A regular file of a folder; `path` is relative, with `/`."""

    path: str
    size: int


def read_chunks(path: Path) -> Iterator[bytes]:
    """Reads a file in chunks of 1 MiB."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def file_digest(path: Path) -> str:
    """Gives the SHA-256 of a file's bytes, 64 lowercase hex digits."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_files(folder: Path) -> list[FolderFile]:
    """Gives a folder's files, sorted by the bytes of their paths.

    Raises:
        SqueezeflowError: MALFORMED_MODEL for a link or another thing that is no file, a name that is not UTF-8, a
            folder without files or with too many.
    """
    files: list[FolderFile] = []
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                path = below + entry.name
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    pending.append(f"{path}/")
                elif stat.S_ISREG(found.st_mode):
                    files.append(FolderFile(path, found.st_size))
                else:
                    raise _malformed(folder, f"{path!r} is no regular file; put the file itself there")
                if fault := path_fault(path):
                    raise _malformed(folder, fault)
                if len(files) > MAX_ENTRIES:
                    raise _malformed(folder, f"it holds more than {MAX_ENTRIES} files; send fewer")
    if not files:
        raise _malformed(folder, "it holds no file")
    return sorted(files, key=lambda file: file.path.encode())


def entries_digest(entries: Iterable[tuple[str, int, str]]) -> str:
    """Gives the digest of a folder from (path, size, file digest): SHA-256 of `[[path,size,digest],…]`, sorted."""
    return sha256_text(canonical_json(sorted((list(entry) for entry in entries), key=lambda entry: entry[0].encode())))


def folder_digest(folder: Path) -> str:
    """Gives the digest of a folder's entries; errors as `folder_files`."""
    return entries_digest((file.path, file.size, file_digest(folder / file.path)) for file in folder_files(folder))


def folder_tar(folder: Path) -> Iterator[bytes]:
    """Gives a folder as canonical tar: equal folders give equal bytes."""
    for file in folder_files(folder):
        yield header(file.path, file.size)
        left = file.size
        for chunk in read_chunks(folder / file.path):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
        if left:
            raise SqueezeflowError(
                "DIGEST_MISMATCH", f"{file.path} changed its size while it was read; write the folder again"
            )
        if gap := padding(file.size):
            yield gap
    yield END


def tar_size(folder: Path) -> int:
    """Gives how many bytes `folder_tar` gives."""
    files = folder_files(folder)
    return len(END) + sum(len(header(f.path, f.size)) + f.size + len(padding(f.size)) for f in files)


def unpack_tar(
    chunks: Iterable[bytes],
    destination: Path,
    *,
    max_bytes: int,
    max_entries: int = MAX_ENTRIES,
    canonical: bool = False,
) -> str:
    """Unpacks an archive into a new folder and gives the folder's digest.

    Args:
        chunks: the archive.
        destination: a folder that does not exist yet; after an error it holds what came before.
        max_bytes: most bytes of all files together.
        max_entries: most files and folders.
        canonical: whether every byte must be as `folder_tar` gives it.

    Raises:
        SqueezeflowError: MALFORMED_MODEL, see `read_tar`; also an archive without files.
    """
    destination.mkdir(parents=True)
    entries = []
    for file in read_tar(chunks, max_bytes=max_bytes, max_entries=max_entries, canonical=canonical):
        target = destination / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        sha256 = hashlib.sha256()
        with target.open("xb") as output:
            for chunk in file.content:
                sha256.update(chunk)
                output.write(chunk)
        entries.append((file.path, file.size, sha256.hexdigest()))
    if not entries:
        raise SqueezeflowError("MALFORMED_MODEL", "the tar is refused: it holds no file")
    return entries_digest(entries)


class CanonicalTar:
    """Passes a stored canonical tar through, and knows its folder's digest afterwards."""

    def __init__(self, chunks: Iterable[bytes], *, size: int) -> None:
        self._files = read_tar(chunks, max_bytes=size, max_entries=MAX_ENTRIES, canonical=True)
        self._entries: list[tuple[str, int, str]] = []

    def __iter__(self) -> Iterator[bytes]:
        """Gives the bytes; MALFORMED_MODEL where they are not canonical."""
        for file in self._files:
            yield header(file.path, file.size)
            yield from self._content(file)
            if gap := padding(file.size):
                yield gap
        yield END

    @property
    def digest(self) -> str:
        """Digest of the entries that came."""
        return entries_digest(self._entries)

    def _content(self, file: TarFile) -> Iterator[bytes]:
        sha256 = hashlib.sha256()
        for chunk in file.content:
            sha256.update(chunk)
            yield chunk
        self._entries.append((file.path, file.size, sha256.hexdigest()))


def _malformed(folder: Path, what: str) -> SqueezeflowError:
    return SqueezeflowError("MALFORMED_MODEL", f"folder {folder.name}: {what}")
