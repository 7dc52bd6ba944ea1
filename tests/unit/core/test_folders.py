from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from squeezeflow.core import folders
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.folders import (
    file_digest,
    folder_digest,
    folder_files,
    folder_tar,
    tar_size,
    unpack_tar,
)

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    for name in ("b", "a-b", "a/b", "a.b", "a/c/d", "ü", "empty"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name == "empty" else name.encode() * 1000)
    return folder


def refusal(folder: Path) -> str:
    messages = set()
    for function in (folder_digest, tar_size, lambda folder: b"".join(folder_tar(folder))):
        with pytest.raises(SqueezeflowError) as caught:
            function(folder)
        assert caught.value.reason == "MALFORMED_MODEL"
        messages.add(caught.value.message)
    assert len(messages) == 1
    return messages.pop()


def test_the_digest_is_that_of_the_entries_as_json(folder: Path) -> None:
    names = ["a-b", "a.b", "a/b", "a/c/d", "b", "empty", "ü"]
    files = {name: (folder / name).read_bytes() for name in names}
    entries = [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in files.items()]
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False)
    assert folder_digest(folder) == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_of_a_saved_model_does_not_change_between_versions() -> None:
    assert (
        folder_digest(DATA / "models" / "basic_pitch" / "nmp")
        == "4bc7839fddcb161d0ef23c85c4383ef783f855a31483af9d7cf1fdc78cffc231"
    )


def test_a_file_digest_is_the_sha256_of_its_bytes(folder: Path) -> None:
    assert file_digest(folder / "b") == hashlib.sha256(b"b" * 1000).hexdigest()


def test_times_modes_and_empty_folders_do_not_count(folder: Path, tmp_path: Path) -> None:
    before = folder_digest(folder), b"".join(folder_tar(folder))
    (folder / "nothing" / "in" / "here").mkdir(parents=True)
    os.utime(folder / "b", (1, 1))
    (folder / "b").chmod(0o700)
    assert (folder_digest(folder), b"".join(folder_tar(folder))) == before


def test_names_and_bytes_count(folder: Path) -> None:
    seen = {folder_digest(folder)}
    (folder / "b").rename(folder / "c")
    seen.add(folder_digest(folder))
    (folder / "c").write_bytes(b"c" * 1000)
    seen.add(folder_digest(folder))
    (folder / "empty").unlink()
    seen.add(folder_digest(folder))
    assert len(seen) == 4


def test_a_folder_comes_back_from_its_tar(folder: Path, tmp_path: Path) -> None:
    chunks = list(folder_tar(folder))
    assert all(chunks)
    data = b"".join(chunks)
    assert len(data) == tar_size(folder)
    assert unpack_tar([data], tmp_path / "out", max_bytes=len(data), canonical=True) == folder_digest(folder)
    assert b"".join(folder_tar(tmp_path / "out")) == data


def test_links_are_refused_and_named(folder: Path) -> None:
    (folder / "a" / "link").symlink_to("b")
    assert "'a/link' is no regular file" in refusal(folder)


def test_links_to_folders_are_refused_and_named(folder: Path) -> None:
    (folder / "link").symlink_to("a", target_is_directory=True)
    assert "'link' is no regular file" in refusal(folder)


def test_pipes_are_refused_and_named(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert "'pipe' is no regular file" in refusal(folder)


@pytest.mark.parametrize("name", [b"bad\xff", b"a\nb", b"a\\b"])
def test_names_that_do_not_travel_are_refused(folder: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"1")
    assert "rename the file" in refusal(folder)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    assert "no file" in refusal(tmp_path / "empty")


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_ENTRIES", 50)
    for number in range(50):
        (tmp_path / str(number)).touch()
    assert len(folder_files(tmp_path)) == 50
    (tmp_path / "one more").touch()
    assert "more than 50 files" in refusal(tmp_path)


@pytest.mark.parametrize("size", [1 << 20, 3 << 20 | 1, 5 << 20])
def test_a_file_that_changes_its_size_while_it_is_read_is_a_mismatch(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    (tmp_path / "b").write_bytes(bytes(3 << 20))
    chunks = folder_tar(tmp_path)
    next(chunks)
    os.truncate(tmp_path / "b", size)
    with pytest.raises(SqueezeflowError) as caught:
        list(chunks)
    assert caught.value.reason == "DIGEST_MISMATCH"
