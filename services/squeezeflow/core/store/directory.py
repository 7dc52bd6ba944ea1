"""A folder as a store: a key is a file's path.

A put writes a temporary file of the same file system, flushes it to the disk and renames it, so a reader and a crash
see the old bytes or the new ones. Temporary files lie in a folder that no key can name; what a crash leaves there is
removed when it is a day old.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from stat import S_ISREG

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store.interface import (
    CHUNK_BYTES,
    ObjectStat,
    check_key,
    check_prefix,
    not_found,
    sized,
    too_large,
)

_TEMPORARY = ".incoming"
_LEFTOVER_SECONDS = 24 * 3600


class DirectoryStore:
    """Objects below one folder, which is made where it is missing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / _TEMPORARY
        with self._failures("open"):
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()

    def put(self, key: str, chunks: Iterable[bytes], *, size: int | None = None) -> None:
        """Writes an object as a whole or not at all; see `Store`."""
        target = self._path(key)
        with self._written(key, sized(key, chunks, size)) as temporary, self._failures(f"write {key}"):
            self._make_parents(target)
            temporary.replace(target)
            _flush_folder(target.parent)

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Writes a small object; with `if_absent` the first of all writers wins."""
        if not if_absent:
            self.put(key, [data])
            return True
        target = self._path(key)
        with self._written(key, [data]) as temporary, self._failures(f"write {key}"):
            self._make_parents(target)
            try:
                os.link(temporary, target)  # the one way to name a whole file only if the name is free
            except FileExistsError:
                return False
            _flush_folder(target.parent)
        return True

    def get(self, key: str) -> Iterator[bytes]:
        """Reads an object in chunks; NOT_FOUND, when iterated, where there is none."""
        path = self._path(key)
        with self._failures(f"read {key}", missing=key), path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def get_bytes(self, key: str, *, limit: int = 16 << 20) -> bytes:
        """Reads a small object; see `Store`."""
        path = self._path(key)
        with self._failures(f"read {key}", missing=key), path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise too_large(key, limit)
        return data

    def stat(self, key: str) -> ObjectStat | None:
        """Gives size and time of an object, None where there is none."""
        path = self._path(key)
        try:
            with self._failures(f"read {key}", missing=key):
                found = path.stat()
        except SqueezeflowError as error:
            if error.reason == "NOT_FOUND":
                return None
            raise
        if not S_ISREG(found.st_mode):
            return None
        return ObjectStat(found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[str]:
        """Gives sorted keys; folders stand where their name stands among those of files."""
        check_prefix(prefix)
        *names, begin = prefix.split("/")
        after = start_after.split("/") if start_after else []
        if names < after[: len(names)]:
            return []
        with self._failures(f"list {prefix}"):
            self._root.stat()
            return list(islice(self._keys("".join(f"{name}/" for name in names), begin, after), limit))

    def delete(self, key: str) -> None:
        """Removes an object; there need not be one. Its folder stays, for another writer may be about to use it."""
        with self._failures(f"delete {key}"):
            path = self._path(key)
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            _flush_folder(path.parent)

    def check(self) -> None:
        """Makes sure that the folder is there and can be written."""
        with self._written("check", [b""]):
            return

    def _path(self, key: str) -> Path:
        check_key(key)
        return self._root / key

    @contextmanager
    def _written(self, key: str, chunks: Iterable[bytes]) -> Iterator[Path]:
        """Gives a temporary file that holds the chunks and is on the disk; it is gone afterwards."""
        path = self._temporary / uuid.uuid4().hex
        try:
            with self._failures(f"write {key}"):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for chunk in chunks:
                    with self._failures(f"write {key}"):
                        rest = memoryview(chunk)
                        while rest:
                            rest = rest[file.write(rest) :]
                with self._failures(f"write {key}"):
                    os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _make_parents(self, target: Path) -> None:
        """Makes missing folders below the root, never the root: it may be a volume that is not there now."""
        missing = []
        folder = target.parent
        while folder != self._root and not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            _flush_folder(folder.parent)

    def _keys(self, folder: str, begin: str, after: Sequence[str]) -> Iterator[str]:
        """Walks keys below a folder, `begin` the beginning of their next name, `after` the path to go on from."""
        try:
            with os.scandir(self._root / folder) as found:
                entries = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in found)
        except (FileNotFoundError, NotADirectoryError):
            return
        skip = _names_below(folder, after)
        for name, is_folder in entries:
            if not name.startswith(begin) or name.startswith(".") or (skip and name < skip[0]):
                continue
            if is_folder:
                yield from self._keys(f"{folder}{name}/", "", after)
            elif not skip or name > skip[0]:
                yield folder + name

    def _remove_leftovers(self) -> None:
        oldest = time.time() - _LEFTOVER_SECONDS
        for path in self._temporary.iterdir():
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                continue  # another process was faster

    @contextmanager
    def _failures(self, doing: str, *, missing: str = "") -> Iterator[None]:
        """Turns errors of the file system into ours; a missing file is NOT_FOUND where `missing` names its key."""
        try:
            yield
        except OSError as error:
            absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
            if missing and absent and self._root.is_dir():
                raise not_found(missing) from error
            raise SqueezeflowError(
                "STORE_UNAVAILABLE",
                f"the store folder {self._root} cannot {doing}: {error.strerror or error}; check that the folder is "
                "there, may be written by this user, and has space left",
                metadata={"store": self._root},
            ) from error


def _names_below(folder: str, after: Sequence[str]) -> Sequence[str]:
    """Gives the names of `after` below `folder`; none when `after` does not lie there."""
    names = folder.split("/")[:-1]
    return after[len(names) :] if after[: len(names)] == names else []


def _flush_folder(folder: Path) -> None:
    """Puts the folder's names on the disk: a rename is lost in a power cut without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
