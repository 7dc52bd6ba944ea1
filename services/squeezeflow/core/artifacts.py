"""Typed artifacts of one tenant over a store: named by content, verified on every read, visible as a whole or not.

Bytes lie under `blobs/<digest>` (a file's bytes, or a folder's canonical tar); then the record `artifacts/<digest>` is
written, and with it the artifact exists. Bytes that turn out wrong on a read mark the record, so that the next write
of the same artifact stores them again instead of trusting them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from squeezeflow.core.artifact_record import ArtifactRecord
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.folders import (
    CanonicalTar,
    file_digest,
    folder_digest,
    folder_files,
    folder_tar,
    read_chunks,
    tar_size,
    unpack_tar,
)
from squeezeflow.core.kinds import (
    DATA_KINDS,
    FOLDER_KINDS,
    KERAS_KINDS,
    MODEL_KINDS,
    file_name,
    kind_of_path,
    kind_word,
)
from squeezeflow.core.step import ArtifactPath
from squeezeflow.core.store import Store
from squeezeflow.core.tenants import tenant_prefix
from squeezeflow.core.uploads import copy, disk_failures, remove, scratch_folder, spool
from squeezeflow.v1.artifact_pb2 import Artifact
from squeezeflow.v1.artifacts_pb2 import WriteArtifactHeader

__all__ = [
    "DATA_KINDS",
    "FOLDER_KINDS",
    "KERAS_KINDS",
    "MAX_UPLOAD_BYTES",
    "MODEL_KINDS",
    "Artifacts",
    "check_digest",
    "digest_of",
    "file_digest",
    "folder_digest",
    "folder_tar",
    "kind_of_path",
    "tar_size",
    "unpack_tar",
]

log = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 8 << 30
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PAGE = 100
_LARGEST_PAGE = 1000
_READERS = 8  # records of a page that are read at the same time


def digest_of(kind: int, path: Path) -> str:
    """Gives the digest that a file or folder has as an artifact of a kind; errors as `Artifacts.write`."""
    _check_form(kind, path)
    return folder_digest(path) if kind in FOLDER_KINDS else file_digest(path)


def check_digest(digest: str) -> str:
    """Gives the digest back; INVALID_PARAMETER when it is not 64 lowercase hex digits."""
    if not _DIGEST.fullmatch(digest):
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"{digest[:80]!r} is no digest; use the 64 lowercase hex digits that the artifact was given",
            fields=[("digest", "64 lowercase hex digits")],
        )
    return digest


class Artifacts:
    """Writes and reads the artifacts of one tenant. Synchronous and thread-safe.

    Every method raises STORE_UNAVAILABLE when the store does not answer, and INVALID_PARAMETER for what is no digest.

    Args:
        store: where the bytes lie.
        tenant: whose they are; another tenant's digest is NOT_FOUND.
        max_bytes: largest upload that `write_stream` takes.
    """

    def __init__(self, store: Store, tenant: str, *, max_bytes: int = MAX_UPLOAD_BYTES) -> None:
        self._store = store
        self._prefix = tenant_prefix(tenant)
        self._max_bytes = max_bytes

    def write(self, kind: int, path: Path) -> Artifact:
        """Stores a file or folder; bytes that are there already are not sent again.

        Raises:
            SqueezeflowError: INVALID_PARAMETER when the kind does not fit the path, or the digest is stored as another
                kind (the kind is what the first writer said; reading it two ways would be a guess); MALFORMED_MODEL
                for a folder that holds links or no files; DIGEST_MISMATCH when the files change meanwhile.
        """
        before = _fingerprint(kind, path)
        return self._keep(kind, path, digest_of(kind, path), before)

    def write_stream(self, header: WriteArtifactHeader, chunks: Iterable[bytes], scratch: Path) -> Artifact:
        """Stores what a client sends, once all of it has come and is what the header announced.

        Args:
            header: kind, size and digest; a folder's size is that of its tar, its digest that of its entries.
            chunks: the file, or any ustar, pax or gnu tar of the folder.
            scratch: folder for the bytes until they are verified; nothing stays in it.

        Raises:
            SqueezeflowError: DIGEST_MISMATCH, MALFORMED_MODEL (see `read_tar`; a tar longer than announced),
                INVALID_PARAMETER (too large, unknown kind).
        """
        kind_word(header.kind)
        check_digest(header.digest)
        if header.size_bytes > self._max_bytes:
            raise SqueezeflowError(
                "INVALID_PARAMETER",
                f"{header.size_bytes} bytes are announced; {self._max_bytes} is the most",
                fields=[("header.size_bytes", f"at most {self._max_bytes}")],
            )
        with scratch_folder(scratch) as folder:
            path = folder / file_name(header.kind)
            with disk_failures(scratch):
                digest = spool(header, chunks, path)
            if digest != header.digest:
                raise SqueezeflowError(
                    "DIGEST_MISMATCH",
                    f"{header.digest} was announced and {digest} came; send the bytes that the digest was made of",
                    metadata={"announced": header.digest, "digest": digest},
                )
            return self._keep(header.kind, path, digest, _fingerprint(header.kind, path))

    def stat(self, digest: str) -> Artifact:
        """Gives an artifact's kind, size and time; NOT_FOUND."""
        return self._existing(digest).artifact(digest)

    def usable(self, digest: str) -> bool:
        """Whether the artifact exists, its bytes are there, and no read has found them wrong."""
        record = self._record(digest)
        return record is not None and self._is_whole(digest, record)

    def list(self, *, page_size: int = 0, page_token: str = "") -> tuple[list[Artifact], str]:
        """Gives a page of artifacts ordered by digest, and the token of the next page; it is empty on the last one.

        Args:
            page_size: 0 means 100; at most 1000.
            page_token: what the call before gave.
        """
        after = f"{self._prefix}artifacts/{check_digest(page_token)}" if page_token else ""
        count = min(page_size or _PAGE, _LARGEST_PAGE)
        keys = self._store.list(f"{self._prefix}artifacts/", start_after=after, limit=count + 1)
        digests = [key.rpartition("/")[2] for key in keys[:count]]
        with ThreadPoolExecutor(_READERS) as readers:
            records = list(readers.map(self._record, digests))
        found = [record.artifact(digest) for digest, record in zip(digests, records, strict=True) if record]
        return found, digests[-1] if len(keys) > count else ""

    def fetch(self, digest: str, folder: Path) -> ArtifactPath:
        """Copies an artifact below a folder, verified, under the name of its kind (`model.keras`, `model`, `data.npz`).

        Raises:
            SqueezeflowError: NOT_FOUND; DIGEST_MISMATCH when the stored bytes are wrong: then nothing stays.
        """
        record = self._existing(digest)
        path = folder / file_name(record.kind)
        with disk_failures(folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove(path)
        try:
            with disk_failures(folder), self._verified(digest, record):
                if record.kind in FOLDER_KINDS:
                    found = unpack_tar(self._blob(digest), path, max_bytes=record.size, canonical=True)
                else:
                    found = copy(self._blob(digest), path)
                _expect(digest, found)
        except BaseException:
            remove(path)
            raise
        return ArtifactPath(record.kind, path)

    def stream(self, digest: str) -> Iterator[bytes]:
        """Gives an artifact's bytes, a folder as canonical tar.

        Raises:
            SqueezeflowError: NOT_FOUND; DIGEST_MISMATCH after the last chunk at the latest: discard what came.
        """
        record = self._existing(digest)
        with self._verified(digest, record):
            if record.kind in FOLDER_KINDS:
                tar = CanonicalTar(self._blob(digest), size=record.size)
                yield from tar
                found = tar.digest
            else:
                sha256 = hashlib.sha256()
                for chunk in self._blob(digest):
                    sha256.update(chunk)
                    yield chunk
                found = sha256.hexdigest()
            _expect(digest, found)

    def _keep(self, kind: int, path: Path, digest: str, before: object) -> Artifact:
        """Stores bytes whose digest is known, then the record; `before` is how the files looked when it was made."""
        standing = self._record(digest)
        if standing is not None:
            _expect_kind(digest, standing, kind)
            if self._is_whole(digest, standing):
                return standing.artifact(digest)
        is_folder = kind in FOLDER_KINDS
        size = tar_size(path) if is_folder else path.stat().st_size
        chunks = folder_tar(path) if is_folder else read_chunks(path)
        self._store.put(self._blob_key(digest), chunks, size=size)
        if _fingerprint(kind, path) != before:
            raise SqueezeflowError("DIGEST_MISMATCH", f"{path.name} changed while it was read; write it again")
        record = ArtifactRecord(kind, size, standing.create_time if standing else datetime.now(UTC))
        key = self._record_key(digest)
        if not self._store.put_bytes(key, record.encode(), if_absent=standing is None):
            other = self._record(digest)
            if other is not None:  # another writer was faster
                _expect_kind(digest, other, kind)
                return other.artifact(digest)
            self._store.put_bytes(key, record.encode())
        return record.artifact(digest)

    def _existing(self, digest: str) -> ArtifactRecord:
        record = self._record(digest)
        if record is None:
            raise SqueezeflowError("NOT_FOUND", f"artifact {digest} does not exist", metadata={"digest": digest})
        return record

    def _record(self, digest: str) -> ArtifactRecord | None:
        """Reads a record; one that cannot be read is as good as none: the next write replaces it."""
        key = self._record_key(digest)
        try:
            return ArtifactRecord.decode(self._store.get_bytes(key))
        except SqueezeflowError as error:
            if error.reason != "NOT_FOUND":
                raise
        except ValueError:
            log.warning("the record %s cannot be read", key)
        return None

    def _is_whole(self, digest: str, record: ArtifactRecord) -> bool:
        found = self._store.stat(self._blob_key(digest))
        return not record.damaged and found is not None and found.size == record.size

    def _blob(self, digest: str) -> Iterator[bytes]:
        try:
            yield from self._store.get(self._blob_key(digest))
        except SqueezeflowError as error:
            if error.reason != "NOT_FOUND":
                raise
            raise SqueezeflowError(
                "NOT_FOUND", f"the bytes of artifact {digest} are gone; write it again", metadata={"digest": digest}
            ) from error

    @contextmanager
    def _verified(self, digest: str, record: ArtifactRecord) -> Iterator[None]:
        """Says DIGEST_MISMATCH where the bytes read are wrong (a tar that cannot be read, too) and marks the record."""
        try:
            yield
        except SqueezeflowError as error:
            if error.reason not in ("DIGEST_MISMATCH", "MALFORMED_MODEL"):
                raise
            self._mark(digest, replace(record, damaged=True))
            raise SqueezeflowError(
                "DIGEST_MISMATCH",
                f"the stored bytes of artifact {digest} are not those that its digest names; write it again",
                metadata={"digest": digest},
            ) from error
        if record.damaged:
            self._mark(digest, replace(record, damaged=False))

    def _mark(self, digest: str, record: ArtifactRecord) -> None:
        try:
            self._store.put_bytes(self._record_key(digest), record.encode())
        except SqueezeflowError as error:  # what was read matters more
            log.warning("artifact %s cannot be marked: %s", digest, error)

    def _blob_key(self, digest: str) -> str:
        return f"{self._prefix}blobs/{check_digest(digest)}"

    def _record_key(self, digest: str) -> str:
        return f"{self._prefix}artifacts/{check_digest(digest)}"


def _check_form(kind: int, path: Path) -> None:
    """Refuses a file where the kind is a folder, and the other way round."""
    word = kind_word(kind)
    if kind in FOLDER_KINDS and not path.is_dir():
        raise SqueezeflowError(
            "INVALID_PARAMETER", f"{path.name} is no folder, and {word} is a folder; name its folder"
        )
    if kind not in FOLDER_KINDS and not path.is_file():
        raise SqueezeflowError("INVALID_PARAMETER", f"{path.name} is no file, and {word} is one file; name the file")


def _fingerprint(kind: int, path: Path) -> object:
    """Gives what shows that files were changed, without reading them again."""
    _check_form(kind, path)
    paths = [path / file.path for file in folder_files(path)] if kind in FOLDER_KINDS else [path]
    return [(p, s.st_size, s.st_mtime_ns, s.st_ino) for p in paths for s in [os.stat(p)]]


def _expect(digest: str, found: str) -> None:
    if found != digest:
        raise SqueezeflowError("DIGEST_MISMATCH", f"{digest} was expected and {found} was read")


def _expect_kind(digest: str, record: ArtifactRecord, kind: int) -> None:
    if record.kind != kind:
        stored = kind_word(record.kind)
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"artifact {digest} is stored as {stored}, not {kind_word(kind)}; write it as {stored}",
            metadata={"digest": digest, "kind": stored},
            fields=[("kind", f"stored as {stored}")],
        )
