"""What artifacts must do over every store; a subclass has a `store` fixture and a fresh `tenant`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.store_suite import SourceFailed, noise, pieces, refusal

from squeezeflow.core.artifacts import Artifacts, digest_of, folder_tar, tar_size
from squeezeflow.core.canonical import canonical_json
from squeezeflow.core.kinds import file_name
from squeezeflow.core.store import Store
from squeezeflow.v1.artifact_pb2 import (
    ARTIFACT_KIND_CONTRACT,
    ARTIFACT_KIND_DATASET,
    ARTIFACT_KIND_DATASET_FOLDER,
    ARTIFACT_KIND_HDF5,
    ARTIFACT_KIND_KERAS,
    ARTIFACT_KIND_SAVED_MODEL,
    ARTIFACT_KIND_TFLITE,
    Artifact,
)
from squeezeflow.v1.artifacts_pb2 import WriteArtifactHeader

KERAS = ARTIFACT_KIND_KERAS
SAVED_MODEL = ARTIFACT_KIND_SAVED_MODEL
ABSENT = "0" * 64


def make_file(folder: Path, data: bytes = b"a model", name: str = "in.keras") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def make_folder(folder: Path) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"")
    (folder / "variables" / "variables.data").write_bytes(noise(2_500_000))
    return folder


def make(kind: int, folder: Path) -> Path:
    return make_folder(folder / "in") if kind == SAVED_MODEL else make_file(folder, noise(5000))


def header(artifact: Artifact, **changes: object) -> WriteArtifactHeader:
    fields = {"kind": artifact.kind, "size_bytes": artifact.size_bytes, "digest": artifact.digest}
    return WriteArtifactHeader(**(fields | changes))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


class ArtifactsSuite:
    """The tests."""

    @pytest.fixture
    def artifacts(self, store: Store, tenant: str) -> Artifacts:
        return Artifacts(store, tenant)

    @pytest.fixture
    def blob_key(self, tenant: str) -> Callable[[Artifact], str]:
        return lambda artifact: f"tenants/{tenant}/blobs/{artifact.digest}"

    @pytest.mark.parametrize(
        "kind", [KERAS, ARTIFACT_KIND_HDF5, ARTIFACT_KIND_TFLITE, ARTIFACT_KIND_DATASET, ARTIFACT_KIND_CONTRACT]
    )
    def test_a_file_comes_back_under_the_name_of_its_kind(
        self, artifacts: Artifacts, tmp_path: Path, kind: int
    ) -> None:
        data = noise(1_500_000, kind)
        written = artifacts.write(kind, make_file(tmp_path, data))
        assert written.digest == hashlib.sha256(data).hexdigest()
        assert (written.kind, written.size_bytes) == (kind, len(data))
        assert abs(written.create_time.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(minutes=5)
        assert artifacts.stat(written.digest) == written
        fetched = artifacts.fetch(written.digest, tmp_path / "new" / "out")
        assert (fetched.kind, fetched.path) == (kind, tmp_path / "new" / "out" / file_name(kind))
        assert fetched.path.read_bytes() == data
        assert b"".join(artifacts.stream(written.digest)) == data

    @pytest.mark.parametrize("kind", [SAVED_MODEL, ARTIFACT_KIND_DATASET_FOLDER])
    def test_a_folder_is_one_artifact(self, artifacts: Artifacts, tmp_path: Path, kind: int) -> None:
        folder = make_folder(tmp_path / "in")
        written = artifacts.write(kind, folder)
        assert written.digest == digest_of(kind, folder)
        assert (written.kind, written.size_bytes) == (kind, tar_size(folder))
        fetched = artifacts.fetch(written.digest, tmp_path / "out")
        assert digest_of(kind, fetched.path) == written.digest
        assert files(fetched.path) == files(folder)
        assert b"".join(artifacts.stream(written.digest)) == b"".join(folder_tar(folder))

    def test_an_empty_file_is_an_artifact(self, artifacts: Artifacts, tmp_path: Path) -> None:
        written = artifacts.write(KERAS, make_file(tmp_path, b""))
        assert artifacts.fetch(written.digest, tmp_path / "out").path.read_bytes() == b""

    @pytest.mark.parametrize("kind", [KERAS, SAVED_MODEL])
    def test_what_is_there_is_not_sent_again(
        self, store: Store, artifacts: Artifacts, tmp_path: Path, kind: int
    ) -> None:
        path = make(kind, tmp_path)
        written = artifacts.write(kind, path)

        class ReadOnly:
            def __getattr__(self, name: str) -> object:
                assert not name.startswith("put"), "bytes were sent again"
                return getattr(store, name)

        again = Artifacts(ReadOnly(), artifacts._prefix.split("/")[1])
        assert again.write(kind, path) == written
        chunks = list(artifacts.stream(written.digest))
        assert again.write_stream(header(written), chunks, tmp_path / "scratch") == written

    def test_an_artifact_is_not_visible_before_its_record(
        self, store: Store, artifacts: Artifacts, tenant: str
    ) -> None:
        store.put_bytes(f"tenants/{tenant}/blobs/{ABSENT}", b"half")
        assert artifacts.list() == ([], "")
        assert not artifacts.usable(ABSENT)
        assert refusal(lambda: artifacts.stat(ABSENT)).reason == "NOT_FOUND"

    def test_what_does_not_exist_is_not_found(self, artifacts: Artifacts, tmp_path: Path) -> None:
        for call in (
            lambda: artifacts.stat(ABSENT),
            lambda: artifacts.fetch(ABSENT, tmp_path / "out"),
            lambda: list(artifacts.stream(ABSENT)),
        ):
            error = refusal(call)
            assert (error.reason, error.metadata["digest"]) == ("NOT_FOUND", ABSENT)
        assert not artifacts.usable(ABSENT)

    @pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "../" + "0" * 61, "sha256:" + "0" * 57])
    def test_what_is_no_digest_is_refused(self, artifacts: Artifacts, tmp_path: Path, digest: str) -> None:
        for call in (
            lambda: artifacts.stat(digest),
            lambda: artifacts.usable(digest),
            lambda: artifacts.fetch(digest, tmp_path),
            lambda: list(artifacts.stream(digest)),
            lambda: artifacts.list(page_token=digest or "x"),
            lambda: artifacts.write_stream(WriteArtifactHeader(kind=KERAS, digest=digest), [], tmp_path),
        ):
            assert refusal(call).reason == "INVALID_PARAMETER"

    def test_the_digest_of_another_tenant_is_not_found(
        self, store: Store, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        other = Artifacts(store, "other-" + artifacts._prefix.split("/")[1])
        written = artifacts.write(KERAS, make_file(tmp_path))
        assert refusal(lambda: other.stat(written.digest)).reason == "NOT_FOUND"
        assert refusal(lambda: other.fetch(written.digest, tmp_path)).reason == "NOT_FOUND"
        assert other.list() == ([], "")
        other.write(KERAS, make_file(tmp_path))
        assert other.stat(written.digest).digest == written.digest

    @pytest.mark.parametrize("tenant_name", ["", "-a", "A", "a/b", "..", "a b", "a" * 64, "ä"])
    def test_a_name_that_is_no_tenant_is_refused(self, store: Store, tenant_name: str) -> None:
        assert refusal(lambda: Artifacts(store, tenant_name)).reason == "INVALID_PARAMETER"

    @pytest.mark.parametrize("at", [0, 700_000, -1])
    def test_a_flipped_bit_in_a_file_is_a_mismatch(
        self, store: Store, artifacts: Artifacts, blob_key: Callable[[Artifact], str], tmp_path: Path, at: int
    ) -> None:
        written = artifacts.write(KERAS, make_file(tmp_path, noise(1_500_000)))
        self.flip(store, blob_key(written), at)
        self.expect_mismatch(artifacts, written, tmp_path)

    @pytest.mark.parametrize("at", [3, 140, 512, 600, 1_000_000, -1])  # name, time, content, padding, content, end
    def test_a_flipped_bit_in_a_folder_is_a_mismatch(
        self, store: Store, artifacts: Artifacts, blob_key: Callable[[Artifact], str], tmp_path: Path, at: int
    ) -> None:
        written = artifacts.write(SAVED_MODEL, make_folder(tmp_path / "in"))
        self.flip(store, blob_key(written), at)
        self.expect_mismatch(artifacts, written, tmp_path)

    @pytest.mark.parametrize("kind", [KERAS, SAVED_MODEL])
    @pytest.mark.parametrize("kept", [0, 1000, -1])
    def test_a_truncated_blob_is_a_mismatch(
        self,
        store: Store,
        artifacts: Artifacts,
        blob_key: Callable[[Artifact], str],
        tmp_path: Path,
        kind: int,
        kept: int,
    ) -> None:
        written = artifacts.write(kind, make(kind, tmp_path))
        store.put_bytes(blob_key(written), store.get_bytes(blob_key(written))[:kept])
        self.expect_mismatch(artifacts, written, tmp_path)

    def flip(self, store: Store, key: str, at: int) -> None:
        data = bytearray(store.get_bytes(key))
        data[at] ^= 4
        store.put_bytes(key, bytes(data))

    def expect_mismatch(self, artifacts: Artifacts, written: Artifact, tmp_path: Path) -> None:
        for _ in range(2):
            error = refusal(lambda: artifacts.fetch(written.digest, tmp_path / "out"))
            assert (error.reason, error.metadata["digest"]) == ("DIGEST_MISMATCH", written.digest)
            assert files(tmp_path / "out") == []
            assert refusal(lambda: list(artifacts.stream(written.digest))).reason == "DIGEST_MISMATCH"

    @pytest.mark.parametrize("kind", [KERAS, SAVED_MODEL])
    def test_writing_again_heals_what_was_found_damaged(
        self, store: Store, artifacts: Artifacts, blob_key: Callable[[Artifact], str], tmp_path: Path, kind: int
    ) -> None:
        path = make(kind, tmp_path)
        written = artifacts.write(kind, path)
        good = store.get_bytes(blob_key(written))
        self.flip(store, blob_key(written), 3)
        refusal(lambda: artifacts.fetch(written.digest, tmp_path / "out"))
        assert not artifacts.usable(written.digest)
        assert artifacts.stat(written.digest) == written
        assert artifacts.write(kind, path) == written
        assert artifacts.usable(written.digest)
        assert store.get_bytes(blob_key(written)) == good
        artifacts.fetch(written.digest, tmp_path / "out")

    def test_a_damage_that_was_none_is_forgotten_at_the_next_good_read(
        self, store: Store, artifacts: Artifacts, blob_key: Callable[[Artifact], str], tmp_path: Path
    ) -> None:
        written = artifacts.write(KERAS, make_file(tmp_path))
        self.flip(store, blob_key(written), 3)
        assert refusal(lambda: list(artifacts.stream(written.digest))).reason == "DIGEST_MISMATCH"
        self.flip(store, blob_key(written), 3)
        assert not artifacts.usable(written.digest)
        assert b"".join(artifacts.stream(written.digest)) == b"a model"
        assert artifacts.usable(written.digest)

    def test_bytes_that_are_gone_are_told_and_written_again(
        self, store: Store, artifacts: Artifacts, blob_key: Callable[[Artifact], str], tmp_path: Path
    ) -> None:
        path = make_file(tmp_path)
        written = artifacts.write(KERAS, path)
        store.delete(blob_key(written))
        assert not artifacts.usable(written.digest)
        error = refusal(lambda: artifacts.fetch(written.digest, tmp_path / "out"))
        assert (error.reason, "write it again" in error.message) == ("NOT_FOUND", True)
        assert artifacts.write(KERAS, path) == written
        assert artifacts.fetch(written.digest, tmp_path / "out").path.read_bytes() == b"a model"

    @pytest.mark.parametrize(
        "record", [b"", b"{}", b"[]", b'{"kind":"ZIP","size":1,"create_time":"2026-01-01T00:00:00+00:00"}', b"\xff"]
    )
    def test_a_record_that_cannot_be_read_is_replaced_by_the_next_write(
        self, store: Store, artifacts: Artifacts, tenant: str, tmp_path: Path, record: bytes
    ) -> None:
        path = make_file(tmp_path)
        good = artifacts.write(ARTIFACT_KIND_TFLITE, make_file(tmp_path, b"other", "b"))
        written = artifacts.write(KERAS, path)
        store.put_bytes(f"tenants/{tenant}/artifacts/{written.digest}", record)
        assert artifacts.list() == ([good], "")
        assert refusal(lambda: artifacts.stat(written.digest)).reason == "NOT_FOUND"
        again = artifacts.write(KERAS, path)
        assert artifacts.stat(written.digest) == again
        assert json.loads(store.get_bytes(f"tenants/{tenant}/artifacts/{written.digest}"))["kind"] == "KERAS"

    def test_the_first_kind_stands_and_another_is_refused(self, artifacts: Artifacts, tmp_path: Path) -> None:
        path = make_file(tmp_path)
        written = artifacts.write(ARTIFACT_KIND_HDF5, path)
        for call in (
            lambda: artifacts.write(KERAS, path),
            lambda: artifacts.write_stream(header(written, kind=KERAS), [b"a model"], tmp_path / "scratch"),
        ):
            error = refusal(call)
            assert (error.reason, error.metadata["kind"]) == ("INVALID_PARAMETER", "HDF5")
            assert "write it as HDF5" in error.message
        assert artifacts.stat(written.digest) == written

    def test_a_file_that_has_the_digest_of_a_folder_does_not_replace_it(
        self, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        folder = tmp_path / "in"
        make_file(folder, b"1", "a")
        written = artifacts.write(SAVED_MODEL, folder)
        entries = make_file(tmp_path, canonical_json([["a", 1, hashlib.sha256(b"1").hexdigest()]]).encode())
        assert digest_of(KERAS, entries) == written.digest
        assert refusal(lambda: artifacts.write(KERAS, entries)).reason == "INVALID_PARAMETER"
        assert artifacts.fetch(written.digest, tmp_path / "out").kind == SAVED_MODEL

    def test_many_writers_of_one_artifact_agree(self, store: Store, tenant: str, tmp_path: Path) -> None:
        path = make_folder(tmp_path / "in")
        with ThreadPoolExecutor(8) as writers:
            written = list(writers.map(lambda _: Artifacts(store, tenant).write(SAVED_MODEL, path), range(8)))
        assert len({artifact.SerializeToString(deterministic=True) for artifact in written}) == 1
        Artifacts(store, tenant).fetch(written[0].digest, tmp_path / "out")

    def test_a_kind_that_does_not_fit_the_path_is_refused(self, artifacts: Artifacts, tmp_path: Path) -> None:
        file, folder = make_file(tmp_path), make_folder(tmp_path / "in")
        for kind, path in ((SAVED_MODEL, file), (KERAS, folder), (KERAS, tmp_path / "none"), (0, file), (99, file)):
            assert refusal(lambda kind=kind, path=path: artifacts.write(kind, path)).reason == "INVALID_PARAMETER"

    def test_a_folder_with_a_link_is_refused(self, artifacts: Artifacts, tmp_path: Path) -> None:
        folder = make_folder(tmp_path / "in")
        (folder / "link").symlink_to("/etc/passwd")
        assert refusal(lambda: artifacts.write(SAVED_MODEL, folder)).reason == "MALFORMED_MODEL"
        assert artifacts.list() == ([], "")

    def test_a_file_that_changes_while_it_is_written_is_a_mismatch(
        self, store: Store, tenant: str, tmp_path: Path
    ) -> None:
        path = make_file(tmp_path, noise(100_000))

        class Meanwhile:
            def __getattr__(self, name: str) -> object:
                if name == "put":
                    path.write_bytes(noise(100_000, 1))
                return getattr(store, name)

        error = refusal(lambda: Artifacts(Meanwhile(), tenant).write(KERAS, path))
        assert error.reason == "DIGEST_MISMATCH"
        assert Artifacts(store, tenant).list() == ([], "")

    @pytest.mark.parametrize("kind", [KERAS, SAVED_MODEL])
    @pytest.mark.parametrize("size", [1000, 1 << 20])
    def test_a_stream_is_stored_as_the_file_or_folder_it_is(
        self, artifacts: Artifacts, tmp_path: Path, kind: int, size: int
    ) -> None:
        path = make(kind, tmp_path)
        data = path.read_bytes() if kind == KERAS else b"".join(folder_tar(path))
        announced = WriteArtifactHeader(kind=kind, size_bytes=len(data), digest=digest_of(kind, path))
        written = artifacts.write_stream(announced, pieces(data, size), tmp_path / "scratch")
        assert (written.kind, written.size_bytes, written.digest) == (kind, len(data), announced.digest)
        assert digest_of(kind, artifacts.fetch(written.digest, tmp_path / "out").path) == written.digest
        assert files(tmp_path / "scratch") == []

    def test_a_tar_of_another_tool_is_stored_as_ours(self, artifacts: Artifacts, tmp_path: Path) -> None:
        folder = make_folder(tmp_path / "in")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(folder, arcname=".")
        announced = WriteArtifactHeader(
            kind=SAVED_MODEL, size_bytes=len(buffer.getvalue()), digest=digest_of(SAVED_MODEL, folder)
        )
        written = artifacts.write_stream(announced, pieces(buffer.getvalue()), tmp_path / "scratch")
        assert written.size_bytes == tar_size(folder)
        assert b"".join(artifacts.stream(written.digest)) == b"".join(folder_tar(folder))

    @pytest.mark.parametrize("kind", [KERAS, SAVED_MODEL])
    def test_other_bytes_than_announced_are_a_mismatch(self, artifacts: Artifacts, tmp_path: Path, kind: int) -> None:
        path = make(kind, tmp_path)
        data = path.read_bytes() if kind == KERAS else b"".join(folder_tar(path))
        announced = {"kind": kind, "size_bytes": len(data), "digest": digest_of(kind, path)}
        cases = [
            ({"digest": ABSENT}, [data], "DIGEST_MISMATCH"),
            ({"size_bytes": len(data) + 512}, [data], "DIGEST_MISMATCH"),
            ({}, [data, b"\0"], "DIGEST_MISMATCH" if kind == KERAS else "MALFORMED_MODEL"),
            (
                {},
                [data[:-700]] if kind == SAVED_MODEL else [data[:-1]],
                "MALFORMED_MODEL" if kind == SAVED_MODEL else "DIGEST_MISMATCH",
            ),
            ({"size_bytes": 0}, [data], "DIGEST_MISMATCH" if kind == KERAS else "MALFORMED_MODEL"),
        ]
        for changes, chunks, reason in cases:
            told = WriteArtifactHeader(**(announced | changes))
            error = refusal(lambda told=told, chunks=chunks: artifacts.write_stream(told, chunks, tmp_path / "scratch"))
            assert error.reason == reason
        assert artifacts.list() == ([], "")
        assert files(tmp_path / "scratch") == []

    def test_a_stream_without_end_is_cut_off(self, artifacts: Artifacts, tmp_path: Path) -> None:
        def endless() -> Iterator[bytes]:
            for number in range(100):
                assert number < 10, "more was read than announced"
                yield bytes(1 << 20)

        for kind in (KERAS, SAVED_MODEL):
            announced = WriteArtifactHeader(kind=kind, size_bytes=5 << 20, digest=ABSENT)
            refusal(lambda told=announced: artifacts.write_stream(told, endless(), tmp_path / "scratch"))
        assert files(tmp_path / "scratch") == []

    def test_an_upload_larger_than_allowed_is_refused_before_a_byte_is_read(
        self, store: Store, tenant: str, tmp_path: Path
    ) -> None:
        small = Artifacts(store, tenant, max_bytes=1000)

        def unread() -> Iterator[bytes]:
            pytest.fail("the stream was read")
            yield b""

        announced = WriteArtifactHeader(kind=KERAS, size_bytes=1001, digest=ABSENT)
        error = refusal(lambda: small.write_stream(announced, unread(), tmp_path / "scratch"))
        assert (error.reason, "1000 is the most" in error.message) == ("INVALID_PARAMETER", True)
        small.write_stream(
            WriteArtifactHeader(kind=KERAS, size_bytes=1000, digest=hashlib.sha256(bytes(1000)).hexdigest()),
            [bytes(1000)],
            tmp_path / "scratch",
        )

    @pytest.mark.parametrize("kind", [KERAS, SAVED_MODEL])
    def test_a_client_that_goes_away_leaves_nothing(self, artifacts: Artifacts, tmp_path: Path, kind: int) -> None:
        def broken_off() -> Iterator[bytes]:
            yield b"".join(folder_tar(make_folder(tmp_path / "in")))[:100_000]
            raise SourceFailed

        announced = WriteArtifactHeader(kind=kind, size_bytes=3 << 20, digest=ABSENT)
        with pytest.raises(SourceFailed):
            artifacts.write_stream(announced, broken_off(), tmp_path / "scratch")
        assert files(tmp_path / "scratch") == []
        assert artifacts.list() == ([], "")

    def test_a_tar_that_climbs_writes_nothing_outside(self, artifacts: Artifacts, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name in ("saved_model.pb", "../../../climbed"):
                info = tarfile.TarInfo(name)
                info.size = 4
                tar.addfile(info, io.BytesIO(b"data"))
        announced = WriteArtifactHeader(kind=SAVED_MODEL, size_bytes=len(buffer.getvalue()), digest=ABSENT)
        scratch = tmp_path / "a" / "b" / "c" / "scratch"
        error = refusal(lambda: artifacts.write_stream(announced, [buffer.getvalue()], scratch))
        assert (error.reason, "climbs" in error.message) == ("MALFORMED_MODEL", True)
        assert files(tmp_path) == ["a", "a/b", "a/b/c", "a/b/c/scratch"]

    def test_pages_of_a_list_are_complete_and_ordered(self, store: Store, artifacts: Artifacts, tmp_path: Path) -> None:
        written = [artifacts.write(KERAS, make_file(tmp_path, b"%d" % number)) for number in range(7)]
        written.sort(key=lambda artifact: artifact.digest)
        assert artifacts.list() == (written, "")
        assert artifacts.list(page_size=7) == (written, "")
        assert artifacts.list(page_size=5000) == (written, "")
        found: list[Artifact] = []
        token = ""
        for size in (3, 3, 1):
            page, token = artifacts.list(page_size=3, page_token=token)
            assert len(page) == size
            found += page
        assert (found, token) == (written, "")

    def test_a_fetch_replaces_what_lies_there(self, artifacts: Artifacts, tmp_path: Path) -> None:
        folder = artifacts.write(SAVED_MODEL, make_folder(tmp_path / "in"))
        file = artifacts.write(KERAS, make_file(tmp_path))
        for _ in range(2):
            artifacts.fetch(folder.digest, tmp_path / "out")
            artifacts.fetch(file.digest, tmp_path / "out")
        os.symlink("/etc/passwd", tmp_path / "out" / "link")
        (tmp_path / "out" / "model.keras").unlink()
        (tmp_path / "out" / "model.keras").symlink_to(tmp_path / "in.keras")
        artifacts.fetch(file.digest, tmp_path / "out")
        assert not (tmp_path / "out" / "model.keras").is_symlink()
