"""Tar, as folders travel and are stored: one canonical form that we write, and a strict reader of what others write.

The reader takes regular files only, holds every name and size against limits before a byte is used, and keeps no more
than a block in memory. Python's tarfile follows extension headers (links, sparse maps, sizes of their own) that a
stranger's archive must not have a say in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from squeezeflow.core.errors import SqueezeflowError

BLOCK = 512
END = bytes(2 * BLOCK)
_OCTAL_SIZES = 8 << 30  # larger sizes do not fit 11 octal digits
_PATH_BYTES = 1024
_NAME_BYTES = 255
_EXTENSION_BYTES = 64 << 10  # largest extension header
_TRAILER_BYTES = 1 << 20  # most zeros after the end
_UNSUPPORTED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"g": "a global extension header",
    b"K": "a link",
    b"S": "a sparse file",
}
_UNSAFE_RECORD = re.compile(rb"(size|linkpath|hdrcharset|GNU\.sparse.*|SCHILY\.realsize)?")
_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True)
class TarFile:
    """A file in an archive; `content` is to be read before the next file is asked for."""

    path: str
    size: int
    content: Iterator[bytes]


def header(path: str, size: int) -> bytes:
    """Gives the canonical header of a file: ustar, mode 644, no owner, no time; an extension header for a long path."""
    name = path.encode()
    if len(name) <= 100:
        return _header_block(name, b"", size, b"0")
    cut = name.rfind(b"/", 0, 156)
    if cut > 0 and len(name) - cut - 1 <= 100:
        return _header_block(name[cut + 1 :], name[:cut], size, b"0")
    record = _extension_record(b"path", name)
    extension = _header_block(b"PaxHeader", b"", len(record), b"x") + record + padding(len(record))
    return extension + _header_block(b"PaxFile", b"", size, b"0")


def padding(size: int) -> bytes:
    """Gives the zeros that fill the last block of a file."""
    return bytes(-size % BLOCK)


def read_tar(
    chunks: Iterable[bytes], *, max_bytes: int, max_entries: int, canonical: bool = False
) -> Iterator[TarFile]:
    """Reads the files of an archive, with flat memory.

    Args:
        chunks: the archive.
        max_bytes: most bytes of all files together.
        max_entries: most headers of any kind.
        canonical: whether every byte must be as `header`, `padding` and `END` give it, files sorted by path.

    Raises:
        SqueezeflowError: MALFORMED_MODEL for anything else than regular files and folders, a path that climbs or comes
            twice, a damaged or truncated archive, or one beyond the limits.
    """
    blocks = _Blocks(chunks)
    paths = _Paths(canonical)
    left = max_bytes
    for _ in range(max_entries + 1):
        found = _next_entry(blocks)
        if found is None:
            blocks.expect_end(canonical)
            return
        path = _checked_path(found.name, folder=found.folder)
        if found.folder:
            paths.add_folder(path)
            continue
        paths.add_file(path)
        left -= found.size
        if left < 0:
            raise _malformed(f"its files hold more than {max_bytes} bytes; send fewer or smaller files")
        if canonical and found.raw != header(path, found.size):
            raise _malformed(f"the header of {path} is not canonical")
        content = blocks.stream(found.size)
        yield TarFile(path, found.size, content)
        for _ in content:  # what the caller did not read
            continue
        if blocks.exactly(-found.size % BLOCK).strip(b"\0") and canonical:
            raise _malformed(f"the padding of {path} is not zero")
    raise _malformed(f"it has more than {max_entries} entries; send fewer files")


@dataclass(frozen=True)
class _Entry:
    name: bytes
    size: int
    folder: bool
    raw: bytes


def _next_entry(blocks: _Blocks) -> _Entry | None:
    """Reads headers up to that of the next file or folder; None at the end."""
    long_name: bytes | None = None
    raw = b""
    while True:
        block = blocks.exactly(BLOCK)
        if not block.strip(b"\0"):
            if raw:
                raise _malformed("an extension header stands before the end")
            return None
        name, size, kind = _parse_header(block)
        raw += block
        if kind in (b"0", b"\0", b"5"):
            folder = kind == b"5" or (kind == b"\0" and name.endswith(b"/"))
            if folder and size:
                raise _malformed(f"folder {name!r} has a size")
            return _Entry(name if long_name is None else long_name, size, folder, raw)
        if kind not in (b"x", b"L"):
            what = _UNSUPPORTED.get(kind, f"an entry of type {kind!r}")
            raise _malformed(f"{name.decode(errors='replace')!r} is {what}; send regular files only")
        if size > _EXTENSION_BYTES or len(raw) > BLOCK:
            raise _malformed("an extension header is too large, or a second one for one file")
        data = blocks.exactly(size)
        raw += data + blocks.exactly(-size % BLOCK)
        long_name = data.removesuffix(b"\0") if kind == b"L" else _extended_path(data)


class _Blocks:
    """Chunks of any size, read by exact counts."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def exactly(self, count: int) -> bytes:
        return b"".join(self.stream(count))

    def stream(self, count: int) -> Iterator[bytes]:
        while count:
            if not self._fill():
                raise _malformed(f"it ends {count} bytes too early; send it again, whole")
            taken = self._rest[:count]
            self._rest = self._rest[len(taken) :]
            count -= len(taken)
            yield bytes(taken)

    def expect_end(self, canonical: bool) -> None:
        """Checks that after a first block of zeros only zeros come."""
        total = BLOCK
        while self._fill():
            total += len(self._rest)
            if bytes(self._rest).strip(b"\0") or total > _TRAILER_BYTES:
                raise _malformed("something comes after its end")
            self._rest = memoryview(b"")
        if canonical and total != len(END):
            raise _malformed("its end is not canonical")

    def _fill(self) -> bool:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._rest = memoryview(chunk)
        return True


class _Paths:
    """Which paths are taken, so that none comes twice, or as a file and as a folder."""

    def __init__(self, sorted_only: bool) -> None:
        self._sorted_only = sorted_only
        self._last = b""
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add_folder(self, path: str) -> None:
        if self._sorted_only:
            raise _malformed("a folder is not canonical")
        if path in self._files:
            raise _malformed(f"{path} comes twice")
        self._add_parents(f"{path}/.")

    def add_file(self, path: str) -> None:
        if path in self._files or path in self._folders:
            raise _malformed(f"{path} comes twice")
        if self._sorted_only and path.encode() <= self._last:
            raise _malformed(f"{path} is not in order")
        self._last = path.encode()
        self._files.add(path)
        self._add_parents(path)

    def _add_parents(self, path: str) -> None:
        at = path.find("/")
        while at > 0:
            if path[:at] in self._files:
                raise _malformed(f"{path[:at]} is a file and a folder")
            self._folders.add(path[:at])
            at = path.find("/", at + 1)


def path_fault(path: str) -> str | None:
    """Says what is wrong with a file's path, relative and with `/`; None when it stays below its folder everywhere."""
    names = path.split("/")
    shown = repr(path[:80])
    if any(name in ("", ".", "..") for name in names):
        return f"the path {shown} climbs out of its folder; use relative paths without '..'"
    if re.search(r"[\x00-\x1f\x7f\\\ud800-\udfff]", path):
        return f"the path {shown} holds control characters or backslashes, or is not UTF-8; rename the file"
    if len(path.encode()) > _PATH_BYTES or max(len(name.encode()) for name in names) > _NAME_BYTES:
        return f"the path {shown}… is longer than {_PATH_BYTES} bytes, or one of its names than {_NAME_BYTES}"
    return None


def _checked_path(raw: bytes, *, folder: bool) -> str:
    """Gives the path of an entry; `./` before it is dropped, and the top folder is `.`."""
    path = raw.decode(errors="surrogateescape")
    if folder:
        path = path.removesuffix("/")
        if path == ".":
            return path
    path = path.removeprefix("./")
    if fault := path_fault(path):
        raise _malformed(fault)
    return path


def _parse_header(block: bytes) -> tuple[bytes, int, bytes]:
    """Gives name, size and type of a header whose checksum is right."""
    if block.startswith(_COMPRESSED):
        raise _malformed("it is compressed; send plain tar")
    unsigned = sum(block[:148]) + 8 * 0x20 + sum(block[156:])
    if _octal(block[148:156]) != unsigned:
        raise _malformed("the checksum of a header is wrong; it is damaged or no tar")
    if block[257:262] != b"ustar":
        raise _malformed("it is an old tar; write it as ustar, pax or gnu")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    size = int.from_bytes(block[125:136], "big") if block[124] == 0x80 else _octal(block[124:136])
    return name, size, block[156:157]


def _octal(field: bytes) -> int:
    text = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", text):
        raise _malformed("a number in a header cannot be read; it is damaged or no tar")
    return int(text or b"0", 8)


def _extended_path(data: bytes) -> bytes | None:
    """Gives the path of an extension header's records; records that change what the entry is are refused."""
    path: bytes | None = None
    while data:
        found = re.match(rb"(\d{1,6}) ", data)
        length = int(found[1]) if found else 0
        record, data = data[:length], data[length:]
        key, equals, value = record[len(found[0]) if found else 0 : -1].partition(b"=")
        if not equals or len(record) != length or not record.endswith(b"\n"):
            raise _malformed("an extension header cannot be read")
        if _UNSAFE_RECORD.fullmatch(key):
            raise _malformed(f"an extension header sets {key[:40]!r}; send regular files only")
        if key == b"path":
            path = value
    return path


def _extension_record(key: bytes, value: bytes) -> bytes:
    """Gives `LENGTH key=value`, where the length counts its own digits."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    return str(length).encode() + body


def _header_block(name: bytes, prefix: bytes, size: int, kind: bytes) -> bytes:
    number = b"%011o\0" % size if size < _OCTAL_SIZES else b"\x80" + size.to_bytes(11, "big")
    fields = (
        name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + number + b"00000000000\0",
        kind + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + prefix.ljust(155, b"\0") + bytes(12),
    )
    checksum = sum(fields[0]) + 8 * 0x20 + sum(fields[1])
    return fields[0] + b"%06o\0 " % checksum + fields[1]


def _malformed(what: str) -> SqueezeflowError:
    return SqueezeflowError("MALFORMED_MODEL", f"the tar is refused: {what}")
