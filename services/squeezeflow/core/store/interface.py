"""What a store can do, and which keys it takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from squeezeflow.core.errors import SqueezeflowError

CHUNK_BYTES = 1 << 20  # largest chunk that `get` gives

# Names that every file system and every server keeps as they are; a leading dot is the stores' own.
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_SEGMENT_BYTES = 200
_KEY_BYTES = 900


@dataclass(frozen=True)
class ObjectStat:
    """Size in bytes, and the time of the last write (UTC)."""

    size: int
    modified: datetime


class Store(Protocol):
    """Objects by key; synchronous and thread-safe.

    Every method raises STORE_UNAVAILABLE, within a bounded time, when the store does not answer or refuses.
    Keys are names joined by `/`; see `check_key`.
    """

    def put(self, key: str, chunks: Iterable[bytes], *, size: int | None = None) -> None:
        """Writes an object as a whole or not at all, with flat memory; what the key held before is replaced.

        An error of `chunks` passes through and nothing is written. With `size`, other than that many bytes is
        DIGEST_MISMATCH.
        """

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Writes a small object; with `if_absent` the first of all writers wins and the others get False."""

    def get(self, key: str) -> Iterator[bytes]:
        """Reads an object in chunks of at most `CHUNK_BYTES`; NOT_FOUND, when iterated, where there is none."""

    def get_bytes(self, key: str, *, limit: int = 16 << 20) -> bytes:
        """Reads a small object; NOT_FOUND where there is none, INTERNAL when it holds more than `limit` bytes."""

    def stat(self, key: str) -> ObjectStat | None:
        """Gives size and time of an object, None where there is none."""

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[str]:
        """Gives up to `limit` keys that begin with `prefix` and come after `start_after`.

        Keys of one folder are sorted by their bytes. Where folders come between is the store's own order; to go on
        after the last key given is complete in every store.
        """

    def delete(self, key: str) -> None:
        """Removes an object; there need not be one."""

    def check(self) -> None:
        """Makes sure that the store can be used: it answers, it takes our keys, its bucket or folder is there."""


def check_key(key: str) -> None:
    """Refuses a key that climbs, is absolute, has an empty name, or a name that some store could not keep."""
    segments = key.split("/")
    for segment in segments:
        if not _SEGMENT.fullmatch(segment) or len(segment) > _SEGMENT_BYTES:
            raise SqueezeflowError(
                "INVALID_PARAMETER",
                f"store key {key!r}: the name {segment!r} is refused; use up to {_SEGMENT_BYTES} letters, digits, "
                "'.', '_' and '-', with no leading '.'",
            )
    if len(key) > _KEY_BYTES:
        raise SqueezeflowError("INVALID_PARAMETER", f"store key {key[:40]!r}… is longer than {_KEY_BYTES} bytes")


def check_prefix(prefix: str) -> None:
    """Refuses a prefix that no key can begin with."""
    check_key(f"{prefix}x" if prefix.endswith("/") or not prefix else prefix)


def sized(key: str, chunks: Iterable[bytes], size: int | None) -> Iterator[bytes]:
    """Passes chunks on and holds them against the announced size; DIGEST_MISMATCH before the last byte is given."""
    total = 0
    held = b""  # one chunk behind, so that no writer can complete an object that turns out too long
    for chunk in chunks:
        total += len(chunk)
        if size is not None and total > size:
            raise _other_size(key, size, f"more than {size}")
        if held:
            yield held
        held = chunk
    if size is not None and total != size:
        raise _other_size(key, size, str(total))
    if held:
        yield held


def too_large(key: str, limit: int) -> SqueezeflowError:
    """Gives the error of `get_bytes` on an object that is no small one."""
    return SqueezeflowError("INTERNAL", f"object {key} holds more than {limit} bytes; read it as a stream")


def not_found(key: str) -> SqueezeflowError:
    """Gives the error of a key that holds nothing."""
    return SqueezeflowError("NOT_FOUND", f"the store holds no object {key}", metadata={"key": key})


def _other_size(key: str, size: int, got: str) -> SqueezeflowError:
    return SqueezeflowError(
        "DIGEST_MISMATCH",
        f"object {key}: {size} bytes were announced and {got} came; the source changed meanwhile, write it again",
        metadata={"key": key},
    )
