from __future__ import annotations

import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import minio
import psutil
import pytest
from tests.actions_suite import ActionsSuite
from tests.artifacts_suite import ArtifactsSuite
from tests.servers import broken, s3
from tests.servers.seaweedfs import SeaweedServer
from tests.store_suite import PART, SourceFailed, StoreSuite, noise, pieces, refusal

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import Store, open_store
from squeezeflow.core.store.s3 import Patience, S3Store
from squeezeflow.core.store.url import S3Location, parse

SECRET = "very-secret"
SHORT = Patience(small=0.7, chunk=0.7, part=0.7)


@pytest.fixture(scope="module", params=s3.servers())
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3.running(request.param, tmp_path_factory.mktemp(request.param) / "server") as store_url:
        yield store_url


@pytest.fixture(scope="module")
def shared_store(url: str) -> Store:
    return open_store(url)


@pytest.fixture
def store(shared_store: Store) -> Store:
    return shared_store


@pytest.fixture
def root() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def tenant(root: str) -> str:
    return root[:20]


class TestS3Store(StoreSuite):
    pass


class TestArtifactsOnS3(ArtifactsSuite):
    pass


class TestActionsOnS3(ActionsSuite):
    pass


def location(url: str) -> S3Location:
    found = parse(url)
    assert isinstance(found, S3Location)
    return found


def at(endpoint: str, patience: Patience = SHORT) -> S3Store:
    return S3Store(S3Location(endpoint, "bucket", False, "somebody", SECRET), patience)


def calls(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.put("a", [b"1"]),
        lambda: store.put("a", pieces(noise(2 * PART))),
        lambda: store.put_bytes("a", b"1"),
        lambda: store.put_bytes("a", b"1", if_absent=True),
        lambda: list(store.get("a")),
        lambda: store.get_bytes("a"),
        lambda: store.stat("a"),
        lambda: store.list("a"),
        lambda: store.delete("a"),
        store.check,
    ]


def caught(call: Callable[[], object]) -> SqueezeflowError | None:
    try:
        call()
    except SqueezeflowError as error:
        return error
    return None


def sdk(url: str) -> minio.Minio:
    where = location(url)
    return minio.Minio(where.endpoint, where.access_key, where.secret_key, secure=where.secure)


def test_a_missing_bucket_is_made_by_whoever_comes_first(url: str) -> None:
    where = location(url)
    fresh = replace(where, bucket=f"b-{uuid.uuid4().hex}")
    stores = [S3Store(fresh) for _ in range(4)]
    threads = [Thread(target=each.check) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].stat("a") is None
    stores[1].put_bytes("a", b"1")
    assert stores[2].get_bytes("a") == b"1"
    stores[3].delete("a")
    sdk(url).remove_bucket(fresh.bucket)


def test_a_bucket_that_went_away_is_named_and_made_again(url: str) -> None:
    where = location(url)
    fresh = replace(where, bucket=f"b-{uuid.uuid4().hex}")
    store = S3Store(fresh)
    store.check()
    sdk(url).remove_bucket(fresh.bucket)
    error = refusal(lambda: store.list(""))
    assert error.reason == "STORE_UNAVAILABLE"
    assert fresh.bucket in error.message
    assert store.list("") == []
    sdk(url).remove_bucket(fresh.bucket)


def test_an_upload_that_fails_leaves_no_parts(store: Store, root: str, url: str) -> None:
    def source() -> Iterator[bytes]:
        yield from pieces(noise(2 * PART + 100))
        raise SourceFailed

    with pytest.raises(SourceFailed):
        store.put(f"{root}/a", source())
    unfinished = sdk(url)._list_multipart_uploads(location(url).bucket, prefix=f"{root}/").uploads
    assert unfinished == []


@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
def test_wrong_keys_are_told_from_a_store_that_is_down(url: str, wrong: str) -> None:
    where = location(url)
    store = S3Store(replace(where, **{wrong: SECRET}))
    for call in calls(store):
        error = refusal(call)
        assert error.reason == "STORE_UNAVAILABLE"
        assert "refuses the keys" in error.message
        assert where.endpoint in error.message
        assert SECRET not in str(error) + str(error.metadata)


def test_a_store_that_is_down_is_named() -> None:
    endpoint = broken.nobody()
    with ThreadPoolExecutor(10) as callers:
        errors = list(callers.map(refusal, calls(at(endpoint, Patience()))))
    for error in errors:
        assert (error.reason, error.metadata["store"]) == ("STORE_UNAVAILABLE", endpoint)
        assert f"{endpoint} does not answer" in error.message
        assert SECRET not in str(error) + str(error.metadata)


def test_a_server_without_tls_is_told_when_tls_is_asked_for(url: str) -> None:
    where = location(url)
    store = S3Store(replace(where, secure=not where.secure), Patience(small=3))
    error = refusal(store.check)
    assert error.reason == "STORE_UNAVAILABLE"
    assert "secure=true or false" in error.message


def test_a_host_that_does_not_exist_is_named() -> None:
    error = refusal(at("no-such-host.invalid:9000", Patience()).check)
    assert error.reason == "STORE_UNAVAILABLE"
    assert "no-such-host.invalid:9000 does not answer" in error.message


@pytest.mark.parametrize("behave", [broken.silent, broken.dripping])
def test_no_call_waits_longer_than_its_deadline(behave: broken.Behaviour) -> None:
    with broken.listening(behave) as endpoint:
        began = time.monotonic()
        with ThreadPoolExecutor(10) as callers:
            errors = list(callers.map(refusal, calls(at(endpoint))))
        assert time.monotonic() - began < 6
    assert {error.reason for error in errors} == {"STORE_UNAVAILABLE"}
    assert all(endpoint in error.message for error in errors)


def test_the_default_deadlines_are_bounded() -> None:
    assert Patience().small <= 15
    assert Patience().chunk <= 60
    assert Patience().part <= 300


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\n<ht>",
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
        b"HTTP/1.1 404 Not Found\r\nContent-Type: application/xml\r\nContent-Length: 3\r\nConnection: close\r\n\r\n<a>",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"",
    ],
)
def test_a_server_that_is_no_s3_is_store_unavailable(answer: bytes) -> None:
    with broken.listening(broken.answering(answer)) as endpoint:
        store = at(endpoint, Patience(small=3))
        for call in (lambda: store.get_bytes("a"), lambda: store.list("a")):
            error = refusal(call)
            assert error.reason == "STORE_UNAVAILABLE"
            assert endpoint in error.message


class SlowServer(BaseHTTPRequestHandler):
    """An S3 server behind a slow line: takes 3 MB a second, gives 1 MB of 8 and then nothing more."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 300_000)))
            time.sleep(0.1)
        self.do_HEAD()

    def do_GET(self) -> None:
        if "location=" in self.path:
            region = b"<LocationConstraint/>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(region)))
            self.end_headers()
            self.wfile.write(region)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(8 << 20))
        self.end_headers()
        self.wfile.write(bytes(1 << 20))
        self.wfile.flush()
        time.sleep(2)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def slow_endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowServer) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # or the kernel takes it all at once
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_slow_line_that_moves_is_not_cut_off(slow_endpoint: str) -> None:
    began = time.monotonic()
    at(slow_endpoint, Patience()).put("a", [bytes(PART)])
    assert time.monotonic() - began > 3  # longer than a connection may take to be made


def test_a_stream_that_stalls_ends_with_store_unavailable(slow_endpoint: str) -> None:
    stream = at(slow_endpoint).get("a")
    assert len(next(stream)) == 1 << 20
    assert refusal(lambda: list(stream)).reason == "STORE_UNAVAILABLE"


def test_a_stream_that_breaks_off_ends_with_store_unavailable(slow_endpoint: str) -> None:
    stream = at(slow_endpoint, Patience(chunk=20)).get("a")
    assert len(next(stream)) == 1 << 20
    assert refusal(lambda: list(stream)).reason == "STORE_UNAVAILABLE"


def test_a_server_that_is_killed_in_mid_upload_leaves_all_or_nothing(tmp_path: Path) -> None:
    server = SeaweedServer(tmp_path / "server")
    server.start()
    try:
        store = open_store(server.url)
        data = noise(4 * PART)
        store.put_bytes("old", b"old")

        def killed_after_two_parts(*, restarted: bool) -> Iterator[bytes]:
            for number, chunk in enumerate(pieces(data, PART)):
                if number == 2:
                    server.kill()
                    if restarted:
                        server.start()
                yield chunk

        error = refusal(lambda: store.put("a", killed_after_two_parts(restarted=False)))
        assert error.reason == "STORE_UNAVAILABLE"
        assert refusal(lambda: store.stat("a")).reason == "STORE_UNAVAILABLE"
        server.start()
        assert store.list("") == ["old"]
        assert store.stat("a") is None

        outcome = caught(lambda: store.put("a", killed_after_two_parts(restarted=True)))
        if outcome is not None:
            assert outcome.reason == "STORE_UNAVAILABLE"
            assert store.list("") == ["old"]
            store.put("a", pieces(data))
        assert b"".join(store.get("a")) == data
        assert store.get_bytes("old") == b"old"
    finally:
        server.kill()


MOVE_BYTES = """
import resource, sys
from squeezeflow.core.store import open_store
store, key, size = open_store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store.put(key, [b"warm"]); store.get_bytes(key)
chunk = bytes(1 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put(key, (chunk for _ in range(size)))
assert sum(map(len, store.get(key))) == size << 20
store.put(key, (chunk for _ in range(size)), size=size << 20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_memory_stays_flat_while_192_mib_go_up_and_down(url: str, root: str) -> None:
    command = [sys.executable, "-c", MOVE_BYTES, url, f"{root}/a", "192"]
    grown_mib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown_mib < 80


DIE_WITH_SERVER = """
import os, signal, sys
from pathlib import Path
from tests.servers.seaweedfs import SeaweedServer
server = SeaweedServer(Path(sys.argv[1]))
server.start()
print(server.pid, *server.sockets(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_test_server_does_not_outlive_a_killed_test(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", DIE_WITH_SERVER, str(tmp_path / "server")],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    pid, *sockets = run.stdout.split()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(pid))
    for path in sockets:
        Path(path).unlink()
