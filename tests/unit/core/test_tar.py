from __future__ import annotations

import gzip
import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.folders import CanonicalTar, folder_digest, folder_tar, unpack_tar
from squeezeflow.core.tar import END, header, padding, read_tar

MIB = 1 << 20


def entry(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.mtime = len(data), kind, link, 1_700_000_000
    return info, data


def archive(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def unpack(data: bytes | Iterable[bytes], folder: Path, *, max_bytes: int = MIB, max_entries: int = 100) -> str:
    chunks = [data] if isinstance(data, bytes) else data
    return unpack_tar(chunks, folder, max_bytes=max_bytes, max_entries=max_entries)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(data: bytes | Iterable[bytes], tmp_path: Path, **limits: int) -> str:
    """Gives the message of a refusal, after a look that nothing was written outside of the folder."""
    with pytest.raises(SqueezeflowError) as caught:
        unpack(data, tmp_path / "in" / "here", **limits)
    assert caught.value.reason == "MALFORMED_MODEL"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["here"]
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    return caught.value.message


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("size", [1, 511, 512, 10_000])
def test_archives_of_other_tools_are_unpacked(tmp_path: Path, form: int, size: int) -> None:
    names = ["./a", "dir/b", "dir/deep/ü", "dir/" + "n" * 90 + "/" + "m" * 90, "empty"]
    if form != tarfile.USTAR_FORMAT:
        names.append("long/" + "x" * 200)
    files = {name.removeprefix("./"): name.encode() * 100 for name in names} | {"empty": b""}
    entries = [entry(".", kind=tarfile.DIRTYPE), entry("./dir/", kind=tarfile.DIRTYPE)]
    for name in names:
        info, data = entry(name, files[name.removeprefix("./")])
        info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
        entries.append((info, data))
    digest = unpack(cut(archive(*entries, form=form), size), tmp_path / "out")
    assert contents(tmp_path / "out") == files
    assert digest == folder_digest(tmp_path / "out")


def test_python_reads_what_we_write(tmp_path: Path) -> None:
    names = ["a", "n" * 100, "p" * 155 + "/" + "n" * 100, "p" * 156 + "/n", "x" * 101, "ü" * 60, "d/" * 200 + "f"]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    with tarfile.open(fileobj=io.BytesIO(b"".join(folder_tar(tmp_path / "in")))) as tar:
        read = {member.name: tar.extractfile(member).read() for member in tar}
    assert read == {name: name.encode() for name in names}
    assert list(read) == sorted(names, key=str.encode)


def test_sizes_beyond_eight_gib_are_written_and_read() -> None:
    size = (8 << 30) + 5
    found = read_tar([header("a", size)], max_bytes=1 << 40, max_entries=1, canonical=True)
    assert next(found).size == size
    assert tarfile.TarInfo.frombuf(header("a", size), "utf-8", "strict").size == size


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "..", "/a", "//a", "a//b", "a/./b", "./../a", "a\\b", "a\nb", "a\x7f"]
)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_path_that_climbs_or_hides_is_refused(tmp_path: Path, name: str, form: int) -> None:
    assert "the path" in refused(archive(entry("good", b"1"), entry(name, b"2"), form=form), tmp_path)


@pytest.mark.parametrize("name", ["../" + "a" * 120, "/" + "a" * 120, "a" * 256, "a/" * 600 + "b"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_path_that_climbs_or_is_too_long_is_refused(tmp_path: Path, name: str, form: int) -> None:
    assert "the path" in refused(archive(entry(name, b"2"), form=form), tmp_path)


def test_a_folder_that_climbs_is_refused(tmp_path: Path) -> None:
    assert "climbs" in refused(archive(entry("../a", kind=tarfile.DIRTYPE), entry("b", b"1")), tmp_path)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.CONTTYPE, "an entry of type"),
        (b"Z", "an entry of type"),
    ],
)
def test_anything_but_files_and_folders_is_refused(tmp_path: Path, kind: bytes, what: str) -> None:
    for target in ("good", "/etc/passwd", "../../x"):
        message = refused(archive(entry("good", b"1"), entry("bad", kind=kind, link=target)), tmp_path)
        assert f"'bad' is {what}" in message
        (tmp_path / "in" / "here" / "good").unlink()
        (tmp_path / "in" / "here").rmdir()


@pytest.mark.parametrize(
    "names", [("a", "a"), ("a", "./a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b"), ("x", "a", "b", "x")]
)
def test_a_path_that_comes_twice_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    message = refused(archive(*(entry(name, b"1") for name in names)), tmp_path)
    assert "twice" in message or "a file and a folder" in message


def test_a_folder_where_a_file_is_is_refused(tmp_path: Path) -> None:
    assert "twice" in refused(archive(entry("a", b"1"), entry("a", kind=tarfile.DIRTYPE)), tmp_path)


@pytest.mark.parametrize(
    "records",
    [
        {"size": "1"},
        {"linkpath": "/etc/passwd"},
        {"hdrcharset": "BINARY"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)},
        {"GNU.sparse.map": "0,1"},
        {"SCHILY.realsize": str(1 << 50)},
    ],
)
def test_extension_records_that_change_the_entry_are_refused(tmp_path: Path, records: dict[str, str]) -> None:
    info, data = entry("a", b"1")
    info.pax_headers = records
    assert "an extension header sets" in refused(archive((info, data), form=tarfile.PAX_FORMAT), tmp_path)


def test_global_extension_headers_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "../x"}) as tar:
        tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
    assert "global" in refused(buffer.getvalue(), tmp_path)


def raw_entry(name: str, data: bytes, kind: bytes) -> bytes:
    """Gives an entry of any type, made from our own header."""
    block = bytearray(header(name, len(data)))
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 0x20 + sum(block[156:]))
    return bytes(block) + data + padding(len(data))


@pytest.mark.parametrize(
    "data",
    [
        raw_entry("x", b"11 path=../\n", b"x"),
        raw_entry("x", b"99 path=a\n", b"x"),
        raw_entry("x", b"path=a\n", b"x"),
        raw_entry("x", b"9 path=a", b"x"),
        raw_entry("x", b"0 ", b"x"),
        raw_entry("x", b"3 \n", b"x"),
        raw_entry("x", b"10 path=b\n", b"x") * 2,
        raw_entry("x", b"long", b"L") * 2,
        raw_entry("x", bytes(65_537), b"x"),
        raw_entry("x", bytes(65_537), b"L"),
        raw_entry("x", b"", b"L"),
        raw_entry("x", b"", b"K"),
        raw_entry("x", b"", b"S"),
        raw_entry("x", b"1", b"5"),
    ],
)
def test_extension_headers_that_make_no_sense_are_refused(tmp_path: Path, data: bytes) -> None:
    refused(data + header("a", 1) + b"1" + padding(1) + END, tmp_path)


def test_an_extension_header_before_the_end_is_refused(tmp_path: Path) -> None:
    assert "before the end" in refused(raw_entry("x", b"10 path=b\n", b"x") + END, tmp_path)


@pytest.mark.parametrize("kind", [b"x", b"L", b"5", b"0"])
def test_headers_without_end_are_refused(tmp_path: Path, kind: bytes) -> None:
    refused((raw_entry(f"n{number}", b"", kind) for number in itertools.count()), tmp_path)


def test_more_entries_than_allowed_are_refused(tmp_path: Path) -> None:
    data = archive(*(entry(str(number)) for number in range(11)))
    assert "more than 10 entries" in refused(data, tmp_path, max_entries=10)
    unpack(data, tmp_path / "out", max_entries=11)


def test_more_bytes_than_allowed_are_refused(tmp_path: Path) -> None:
    data = archive(entry("a", bytes(600)), entry("b", bytes(401)))
    assert "more than 1000 bytes" in refused(data, tmp_path, max_bytes=1000)
    unpack(data, tmp_path / "out", max_bytes=1001)


def test_a_size_that_no_disk_holds_is_refused_before_a_byte_is_read(tmp_path: Path) -> None:
    def endless() -> Iterator[bytes]:
        yield header("a", 1 << 60)
        pytest.fail("content was asked for")

    assert "hold more than" in refused(endless(), tmp_path)


def test_zeros_without_end_are_refused(tmp_path: Path) -> None:
    good = header("a", 1) + b"1" + padding(1)
    assert "after its end" in refused(itertools.chain([good], itertools.repeat(bytes(MIB))), tmp_path)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 700, 1024, 1535, 1536, 2047])
def test_a_truncated_archive_is_refused(tmp_path: Path, size: int) -> None:
    whole = header("a", 600) + bytes(600) + padding(600)
    assert len(whole) == 1536
    assert "too early" in refused((whole + bytes(511))[:size], tmp_path)


def test_something_after_the_end_is_refused(tmp_path: Path) -> None:
    assert "after its end" in refused(archive(entry("a", b"1")) + b"x", tmp_path)


@pytest.mark.parametrize("data", [END, archive(), archive(entry("a", kind=tarfile.DIRTYPE))])
def test_an_archive_without_files_is_refused(tmp_path: Path, data: bytes) -> None:
    assert "no file" in refused(data, tmp_path)


@pytest.mark.parametrize("data", [gzip.compress(archive(entry("a", b"1"))) + bytes(512), b"PK\x03\x04" + bytes(600)])
def test_a_compressed_archive_is_refused_with_what_to_send(tmp_path: Path, data: bytes) -> None:
    assert "send plain tar" in refused(data, tmp_path)


@pytest.mark.parametrize("data", [b"x" * 1024, bytes(range(256)) * 4, b"\x89HDF\r\n\x1a\n" + bytes(1000)])
def test_bytes_that_are_no_tar_are_refused(tmp_path: Path, data: bytes) -> None:
    assert "checksum" in refused(data, tmp_path) or "cannot be read" in refused(data, tmp_path / "again")


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    info, data = entry("bad\udcff", b"1")
    assert "not UTF-8" in refused(archive((info, data)), tmp_path)


def test_every_flipped_bit_of_a_canonical_archive_shows(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "d" / ("b" * 120)).write_bytes(b"second")
    good = b"".join(folder_tar(tmp_path))
    digest = folder_digest(tmp_path)
    tar = CanonicalTar([good], size=len(good))
    assert (b"".join(tar), tar.digest) == (good, digest)
    for at in range(len(good)):
        flipped = bytearray(good)
        flipped[at] ^= 1 << at % 8
        tar = CanonicalTar([bytes(flipped)], size=len(good))
        try:
            assert b"".join(tar) == flipped
        except SqueezeflowError:
            continue
        assert tar.digest != digest


def test_an_archive_that_is_only_nearly_canonical_shows() -> None:
    a, b = (header(name, 1) + b"1" + padding(1) for name in "ab")
    folder = raw_entry("d", b"", b"5")
    for data in (b + a + END, a + folder + END, a + END + bytes(512), a + bytes(512), a + a + END):
        with pytest.raises(SqueezeflowError):
            b"".join(CanonicalTar([data], size=len(data)))
