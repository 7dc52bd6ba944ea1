"""An S3 bucket as a store, through the MinIO SDK; MinIO, SeaweedFS and other S3 servers.

Large objects go up in parts, so memory stays flat and nothing is visible before the last part is in; an upload that
fails is aborted. Every operation has a deadline (`deadline.py`), and every failure becomes one of ours, with the host
and never the keys.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, BinaryIO, cast
from xml.etree.ElementTree import ParseError

from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError, MaxRetryError, SSLError

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store.deadline import connection_pool, deadline, restart_deadline
from squeezeflow.core.store.interface import (
    CHUNK_BYTES,
    ObjectStat,
    check_key,
    check_prefix,
    not_found,
    sized,
    too_large,
)
from squeezeflow.core.store.url import S3Location

_PART_BYTES = 16 << 20
_MOST_PARTS = 10_000
_CONFLICTS = 5  # a server may ask to repeat a conditional write that met another one

_REFUSED_KEYS = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "ExpiredToken"}
_BUCKET_IS_OURS = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
# What the SDK raises when a server fails; ValueError and ParseError when the answer is not that of an S3 server.
_FAILURES = (MinioException, HTTPError, OSError, ValueError, ParseError)


@dataclass(frozen=True)
class Patience:
    """Deadlines in seconds.

    Attributes:
        small: of an operation on a small object, and of opening a stream.
        chunk: of one chunk of a stream, 1 MiB.
        part: of one part of an upload, 16 MiB.
    """

    small: float = 12
    chunk: float = 30
    part: float = 120


class S3Store:
    """Objects in one bucket, which is made at the first use where it is missing."""

    def __init__(self, location: S3Location, patience: Patience = Patience()) -> None:
        self._location = location
        self._patience = patience
        self._bucket = location.bucket
        self._process = 0  # whose client it is: connections do not survive a fork
        self._pool: PoolManager
        self._sdk: Minio
        self._bucket_known = False

    def put(self, key: str, chunks: Iterable[bytes], *, size: int | None = None) -> None:
        """Writes an object as a whole or not at all; see `Store`."""
        check_key(key)
        checked = sized(key, chunks, size)
        if size == 0:
            checked = iter(list(checked))  # the SDK would not look whether anything comes
        source = _Source(checked, before_part=lambda: restart_deadline(self._patience.part))
        part_bytes = max(_PART_BYTES, -(-(size or 0) // _MOST_PARTS))
        try:
            with self._failures(key), deadline(self._patience.part):
                self._client().put_object(
                    self._bucket,
                    key,
                    cast(BinaryIO, source),
                    -1 if size is None else size,
                    part_size=part_bytes,
                    num_parallel_uploads=1,  # the SDK's threads outlive an upload whose source fails
                )
        except SqueezeflowError:
            if source.error is not None:
                raise source.error from None
            raise

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Writes a small object; with `if_absent` the first of all writers wins."""
        check_key(key)
        with self._failures(key), deadline(self._patience.small):
            if if_absent:
                return self._put_absent(key, data)
            self._client().put_object(self._bucket, key, io.BytesIO(data), len(data))
            return True

    def get(self, key: str) -> Iterator[bytes]:
        """Reads an object in chunks; NOT_FOUND, when iterated, where there is none."""
        check_key(key)
        with self._failures(key), deadline(self._patience.small):
            response = self._client().get_object(self._bucket, key)
        try:
            while True:
                with self._failures(key), deadline(self._patience.chunk):
                    chunk = response.read(CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk
        finally:
            response.close()  # of a stream that was left early: its connection cannot be used again

    def get_bytes(self, key: str, *, limit: int = 16 << 20) -> bytes:
        """Reads a small object; see `Store`."""
        data = bytearray()
        for chunk in self.get(key):
            data += chunk
            if len(data) > limit:
                raise too_large(key, limit)
        return bytes(data)

    def stat(self, key: str) -> ObjectStat | None:
        """Gives size and time of an object, None where there is none."""
        check_key(key)
        try:
            with self._failures(key), deadline(self._patience.small):
                found = self._client().stat_object(self._bucket, key)
                return ObjectStat(found.size or 0, found.last_modified or datetime.fromtimestamp(0, UTC))
        except SqueezeflowError as error:
            if error.reason == "NOT_FOUND":
                return None
            raise

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[str]:
        """Gives keys in the server's order; see `Store`."""
        check_prefix(prefix)
        with self._failures(prefix), deadline(self._patience.small + limit / 1000):
            found = self._client().list_objects(
                self._bucket, prefix=prefix, recursive=True, start_after=start_after or None
            )
            return [each.object_name for each in islice(found, limit)]

    def delete(self, key: str) -> None:
        """Removes an object; there need not be one."""
        check_key(key)
        with self._failures(key), deadline(self._patience.small):
            self._client().remove_object(self._bucket, key)

    def check(self) -> None:
        """Makes sure that the server answers, takes our keys, and has the bucket."""
        with self._failures("check"), deadline(self._patience.small):
            self._bucket_known = False
            self._client()

    def _client(self) -> Minio:
        """Gives this process's client, and makes the bucket at its first use."""
        if self._process != os.getpid():
            self._pool = connection_pool()
            self._sdk = Minio(
                self._location.endpoint,
                self._location.access_key,
                self._location.secret_key,
                secure=self._location.secure,
                http_client=self._pool,
            )
            self._bucket_known = False
            self._process = os.getpid()
        if not self._bucket_known:
            self._make_bucket(self._sdk)
            self._bucket_known = True
        return self._sdk

    def _make_bucket(self, client: Minio) -> None:
        if client.bucket_exists(self._bucket):
            return
        try:
            client.make_bucket(self._bucket)
        except S3Error as error:
            if error.code not in _BUCKET_IS_OURS:  # another process was faster
                raise

    def _put_absent(self, key: str, data: bytes) -> bool:
        """Writes on condition, which the SDK's own put cannot: it turns the header into metadata."""
        client = self._client()
        for _ in range(_CONFLICTS):
            url = client.get_presigned_url("PUT", self._bucket, key, expires=timedelta(minutes=10))
            response = self._pool.request("PUT", url, body=data, headers={"If-None-Match": "*"})
            if response.status == 412:
                return False
            if response.status != 409:
                break
        if response.status == 200:
            return True
        if response.data.lstrip().startswith(b"<"):
            raise S3Error.fromxml(response)
        raise ServerError(f"conditional write answered with {response.status}", response.status)

    @contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        """Turns failures of server, network and SDK into ours."""
        try:
            yield
        except SqueezeflowError:
            raise
        except _FAILURES as error:
            code = error.code if isinstance(error, S3Error) else None
            if code == "NoSuchKey":
                raise not_found(key) from error
            if code == "NoSuchBucket":
                self._bucket_known = False  # made again at the next operation
            raise SqueezeflowError(
                "STORE_UNAVAILABLE",
                f"the object store at {self._location.endpoint} {_explain(error, self._bucket)}",
                metadata={
                    "store": self._location.endpoint,
                    "bucket": self._bucket,
                    "code": code or type(error).__name__,
                },
            ) from error


class _Source:
    """The chunks of an upload as the file that the SDK reads parts from; keeps the error that ended them."""

    def __init__(self, chunks: Iterator[bytes], before_part: Callable[[], None]) -> None:
        self._chunks = chunks
        self._before_part = before_part
        self._rest = memoryview(b"")
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        """Gives `size` bytes, fewer only at the end."""
        parts: list[Any] = []
        missing = size
        while missing:
            if not self._rest and not self._next():
                break
            parts.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(parts[-1])
        self._before_part()
        return b"".join(parts)

    def _next(self) -> bool:
        try:
            for chunk in self._chunks:
                self._rest = memoryview(chunk)
                return True
        except BaseException as error:  # the SDK aborts the upload on an Exception only, and its abort may fail too
            self.error = error
            self._before_part()  # the abort needs time, however long the source took
            raise OSError("the source of the upload failed") from error
        return False


def _explain(error: BaseException, bucket: str) -> str:
    """Says what a failure means and what to check."""
    if isinstance(error, S3Error):
        if error.code in _REFUSED_KEYS:
            return f"refuses the keys ({error.code}); check access key, secret key, their rights, and both clocks"
        if error.code == "NoSuchBucket":
            return f"has lost its bucket {bucket}; check its volume, then try again"
        return f"refuses ({error.code}); check its log and its free space"
    if isinstance(error, ServerError | InvalidResponseError | ValueError | ParseError):
        return "does not answer as S3 does; check that the store URL names the S3 port, and secure=true or false"
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason is not None else error
    if isinstance(cause, SSLError):
        return "does not agree on TLS; check secure=true or false in the store URL, and the server's certificate"
    kind = type(cause).__name__
    return f"does not answer ({kind}); check that it runs and that the store URL names its host and port"
