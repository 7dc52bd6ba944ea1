from __future__ import annotations

import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.store_suite import StoreSuite, noise, refusal

from squeezeflow.core.store import Store, open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Store:
    return open_store(f"dir:{folder}")


@pytest.fixture
def root() -> str:
    return "below"


class TestDirectoryStore(StoreSuite):
    pass


def put_and_die(store: Store, key: str) -> None:
    """Runs a put in a child that is killed when half the bytes are written."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:

        def half() -> Iterator[bytes]:
            yield b"h" * 100_000
            yield b"h"
            os.write(write_end, b"1")
            time.sleep(60)

        store.put(key, half())
        os._exit(1)
    os.read(read_end, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read_end)
    os.close(write_end)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_put_that_dies_half_way_leaves_nothing_visible(store: Store, folder: Path) -> None:
    store.put_bytes("a/old", b"old")
    put_and_die(store, "a/new")
    put_and_die(store, "a/old")
    assert store.list("") == ["a/old"]
    assert store.stat("a/new") is None
    assert store.get_bytes("a/old") == b"old"
    store.put_bytes("a/new", b"new")
    assert store.get_bytes("a/new") == b"new"


def test_leftovers_are_removed_at_open_when_they_are_a_day_old(store: Store, folder: Path) -> None:
    put_and_die(store, "a")
    put_and_die(store, "a")
    old, fresh = files(folder)
    os.utime(old, (time.time() - 90_000,) * 2)
    open_store(f"dir:{folder}")
    assert files(folder) == [fresh]


def test_a_put_leaves_no_temporary_file(store: Store, folder: Path) -> None:
    store.put("a/b", [b"1"])
    store.put_bytes("a/c", b"1", if_absent=True)
    store.put_bytes("a/c", b"1", if_absent=True)
    store.check()
    assert sorted(files(folder)) == [folder / "a" / "b", folder / "a" / "c"]


def test_readers_see_the_old_bytes_or_the_new_ones(store: Store) -> None:
    bodies = [noise(300_000, seed) for seed in range(2)]
    store.put_bytes("a", bodies[0])
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for body in bodies:
                store.put("a", [body[:1000], body[1000:]])

    writer = threading.Thread(target=replace)
    writer.start()
    seen = {store.get_bytes("a") for _ in range(200)}
    stop.set()
    writer.join()
    assert seen <= set(bodies)


def test_a_full_disk_is_store_unavailable_and_nothing_is_written(store: Store, folder: Path) -> None:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        error = refusal(lambda: store.put("a", [noise(200_000)]))
        os._exit(0 if error.reason == "STORE_UNAVAILABLE" and "space" in error.message else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert files(folder) == []


def test_a_folder_that_went_away_is_store_unavailable_and_not_an_empty_store(store: Store, folder: Path) -> None:
    store.put_bytes("a", b"1")
    shutil.rmtree(folder)
    calls = (
        lambda: store.get_bytes("a"),
        lambda: list(store.get("a")),
        lambda: store.stat("a"),
        lambda: store.list(""),
        lambda: store.put_bytes("b", b"1"),
        lambda: store.put("b", [b"1"]),
        store.check,
    )
    for call in calls:
        error = refusal(call)
        assert (error.reason, error.metadata["store"]) == ("STORE_UNAVAILABLE", str(folder))
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_store_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    error = refusal(lambda: open_store(f"dir:{tmp_path}/file/store"))
    assert error.reason == "STORE_UNAVAILABLE"
    assert f"{tmp_path}/file/store" in error.message


def test_the_same_folder_may_be_opened_twice(store: Store, folder: Path) -> None:
    store.put_bytes("a", b"1")
    assert open_store(f"dir:{folder}").get_bytes("a") == b"1"
