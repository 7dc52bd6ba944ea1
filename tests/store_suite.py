"""What every store must do; each implementation, and each server, runs it with a `store` fixture of its own.

The fixture gives an empty place: suites of one server write below `root`, which differs from test to test.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import CHUNK_BYTES, Store

PART = 16 << 20
BAD_KEYS = (
    "",
    "/a",
    "a/",
    "a//b",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    ".a",
    "a/.b",
    "a b",
    "a\\b",
    "a\nb",
    "ä",
    "a" * 201,
    "/".join(["a" * 100] * 10),
)


class SourceFailed(Exception):
    """Raised by a source of bytes."""


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def pieces(data: bytes, size: int = 777_777) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def refusal(function: Callable[[], object]) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        function()
    return caught.value


def listed(store: Store, prefix: str, page: int) -> list[str]:
    """Lists all keys, page by page."""
    found: list[str] = []
    while keys := store.list(prefix, start_after=found[-1] if found else "", limit=page):
        assert len(keys) <= page
        found += keys
    return found


class StoreSuite:
    """The tests; a subclass has the fixtures `store` and `root`."""

    @pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, PART, PART + 1, 2 * PART + 5])
    @pytest.mark.parametrize("announced", [True, False])
    def test_get_gives_what_was_put(self, store: Store, root: str, size: int, announced: bool) -> None:
        data = noise(size)
        store.put(f"{root}/a", pieces(data), size=size if announced else None)
        chunks = list(store.get(f"{root}/a"))
        assert b"".join(chunks) == data
        assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)

    def test_one_chunk_of_any_size_is_stored(self, store: Store, root: str) -> None:
        data = noise(PART + 99)
        store.put(f"{root}/a", [b"", data, b""])
        assert store.get_bytes(f"{root}/a", limit=2 * PART) == data

    def test_a_put_replaces_what_was_there(self, store: Store, root: str) -> None:
        store.put(f"{root}/a", [b"old and longer"])
        store.put(f"{root}/a", [b"new"])
        assert store.get_bytes(f"{root}/a") == b"new"

    def test_a_missing_key_is_not_found(self, store: Store, root: str) -> None:
        store.put_bytes(f"{root}/folder/a", b"1")
        for key in (f"{root}/none", f"{root}/folder", f"{root}/folder/a/b"):
            error = refusal(lambda key=key: list(store.get(key)))
            assert (error.reason, error.metadata["key"]) == ("NOT_FOUND", key)
            assert refusal(lambda key=key: store.get_bytes(key)).reason == "NOT_FOUND"
            assert store.stat(key) is None

    def test_small_objects_are_read_whole_or_refused(self, store: Store, root: str) -> None:
        store.put_bytes(f"{root}/a", b"12345")
        assert store.get_bytes(f"{root}/a", limit=5) == b"12345"
        assert refusal(lambda: store.get_bytes(f"{root}/a", limit=4)).reason == "INTERNAL"

    def test_stat_gives_size_and_time(self, store: Store, root: str) -> None:
        store.put(f"{root}/a", [b"12345"])
        found = store.stat(f"{root}/a")
        assert found is not None
        assert found.size == 5
        assert abs(found.modified - datetime.now(UTC)) < timedelta(minutes=5)

    def test_the_first_of_conditional_writers_wins(self, store: Store, root: str) -> None:
        assert store.put_bytes(f"{root}/a", b"first", if_absent=True) is True
        assert store.put_bytes(f"{root}/a", b"second", if_absent=True) is False
        assert store.get_bytes(f"{root}/a") == b"first"
        assert store.put_bytes(f"{root}/a", b"third") is True
        assert store.get_bytes(f"{root}/a") == b"third"

    def test_exactly_one_of_many_conditional_writers_wins(self, store: Store, root: str) -> None:
        with ThreadPoolExecutor(8) as writers:
            for key in (f"{root}/{number}" for number in range(3)):
                wrote = list(writers.map(lambda n, key=key: store.put_bytes(key, b"%d" % n, if_absent=True), range(8)))
                assert wrote.count(True) == 1
                assert store.get_bytes(key) == b"%d" % wrote.index(True)

    def test_concurrent_writers_leave_the_whole_bytes_of_one(self, store: Store, root: str) -> None:
        bodies = [noise(3 << 20, seed) for seed in range(4)]
        with ThreadPoolExecutor(4) as writers:
            list(writers.map(lambda body: store.put(f"{root}/a", pieces(body)), bodies))
        assert store.get_bytes(f"{root}/a") in bodies

    @pytest.mark.parametrize("good_bytes", [0, 100, 2 * PART + 100])
    @pytest.mark.parametrize("announced", [True, False])
    def test_nothing_is_written_when_the_source_fails(
        self, store: Store, root: str, good_bytes: int, announced: bool
    ) -> None:
        def source() -> Iterator[bytes]:
            yield from pieces(noise(good_bytes))
            raise SourceFailed

        store.put_bytes(f"{root}/old", b"old")
        for key in ("old", "new"):
            with pytest.raises(SourceFailed):
                store.put(f"{root}/{key}", source(), size=3 * PART if announced else None)
        assert store.list(f"{root}/") == [f"{root}/old"]
        assert store.get_bytes(f"{root}/old") == b"old"

    @pytest.mark.parametrize(
        ("size", "announced"), [(10, 11), (10, 9), (10, 0), (0, 1), (PART + 10, PART + 9), (5, PART * 2)]
    )
    def test_another_size_than_announced_is_a_mismatch(
        self, store: Store, root: str, size: int, announced: int
    ) -> None:
        error = refusal(lambda: store.put(f"{root}/a", pieces(noise(size)), size=announced))
        assert error.reason == "DIGEST_MISMATCH"
        assert str(announced) in error.message
        assert store.stat(f"{root}/a") is None

    def test_list_gives_the_keys_of_a_prefix_in_order(self, store: Store, root: str) -> None:
        names = ["b", "a", "ab", "aa", "B", "c.d", "c-d", "c_d", "1"]
        for name in names:
            store.put_bytes(f"{root}/x/{name}", b"")
        store.put_bytes(f"{root}/y", b"")
        expected = [f"{root}/x/{name}" for name in sorted(names)]
        assert store.list(f"{root}/x/") == expected
        assert store.list(f"{root}/x/a") == [f"{root}/x/{name}" for name in ("a", "aa", "ab")]
        assert store.list(f"{root}/x/", limit=3) == expected[:3]
        assert store.list(f"{root}/x/", start_after=f"{root}/x/aa") == expected[expected.index(f"{root}/x/aa") + 1 :]
        assert store.list(f"{root}/x/", start_after=f"{root}/x/a0", limit=1) == [f"{root}/x/aa"]
        assert store.list(f"{root}/x/", start_after=f"{root}/y") == []
        assert store.list(f"{root}/none/") == []

    @pytest.mark.parametrize("page", [1, 2, 7])
    def test_paging_through_folders_misses_nothing(self, store: Store, root: str, page: int) -> None:
        names = ["a", "a-b", "a.b", "d/a", "d/a-/x", "d/b/c/e", "d/b/c/f", "d-/a", "d.x", "e"]
        for name in names:
            store.put_bytes(f"{root}/{name}", b"")
        found = listed(store, f"{root}/", page)
        assert sorted(found) == sorted(f"{root}/{name}" for name in names)
        assert listed(store, f"{root}/d/", page) == [f"{root}/{name}" for name in names if name.startswith("d/")]

    def test_lists_longer_than_a_page_of_the_server_are_complete(self, store: Store, root: str) -> None:
        keys = [f"{root}/{number:04}" for number in range(1005)]
        with ThreadPoolExecutor(8) as writers:
            list(writers.map(lambda key: store.put_bytes(key, b""), keys))
        assert store.list(f"{root}/", limit=2000) == keys
        assert store.list(f"{root}/") == keys[:1000]
        assert store.list(f"{root}/", start_after=keys[999]) == keys[1000:]

    def test_delete_removes_and_may_be_repeated(self, store: Store, root: str) -> None:
        store.put_bytes(f"{root}/a/b", b"1")
        store.put_bytes(f"{root}/a/c", b"2")
        store.delete(f"{root}/a/b")
        store.delete(f"{root}/a/b")
        store.delete(f"{root}/never/was")
        assert store.list(f"{root}/") == [f"{root}/a/c"]
        store.put_bytes(f"{root}/a/b", b"3", if_absent=True)
        assert store.get_bytes(f"{root}/a/b") == b"3"

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_keys_that_climb_or_that_some_store_cannot_keep_are_refused(self, store: Store, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.put(key, [b"1"]),
            lambda: store.put_bytes(key, b"1"),
            lambda: store.put_bytes(key, b"1", if_absent=True),
            lambda: list(store.get(key)),
            lambda: store.get_bytes(key),
            lambda: store.stat(key),
            lambda: store.delete(key),
        ]
        assert {refusal(call).reason for call in calls} == {"INVALID_PARAMETER"}

    @pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//", ".incoming/", "ä"])
    def test_prefixes_that_climb_are_refused(self, store: Store, prefix: str) -> None:
        assert refusal(lambda: store.list(prefix)).reason == "INVALID_PARAMETER"

    def test_a_stream_may_be_left_early(self, store: Store, root: str) -> None:
        data = noise(8 << 20)
        store.put(f"{root}/a", [data])
        for _ in range(20):  # more than there are connections
            stream = store.get(f"{root}/a")
            assert next(stream)
            del stream
        assert hashlib.sha256(b"".join(store.get(f"{root}/a"))).digest() == hashlib.sha256(data).digest()

    def test_many_streams_may_be_open_at_once(self, store: Store, root: str) -> None:
        data = noise(3 << 20)
        store.put(f"{root}/a", [data])
        streams = [store.get(f"{root}/a") for _ in range(20)]
        assert {b"".join(islice(stream, 1)) for stream in streams} == {data[:CHUNK_BYTES]}
        assert all(b"".join(stream) == data[CHUNK_BYTES:] for stream in streams)

    def test_a_forked_child_and_its_parent_both_go_on(self, store: Store, root: str) -> None:
        def gives_its_own(name: str) -> bool:
            return all(store.get_bytes(f"{root}/{name}") == name.encode() * 10_000 for _ in range(100))

        for name in ("parent", "child"):
            store.put_bytes(f"{root}/{name}", name.encode() * 10_000)
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if gives_its_own("child") and store.put_bytes(f"{root}/new", b"new") else 1)
            except BaseException:
                os._exit(2)
        assert gives_its_own("parent")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert store.get_bytes(f"{root}/new") == b"new"

    def test_a_store_that_can_be_used_passes_its_check(self, store: Store) -> None:
        store.check()
        store.check()
