from __future__ import annotations

from pathlib import Path

import pytest
from tests.store_suite import refusal

from squeezeflow.core.store.url import S3Location, parse


def test_a_folder_url_gives_an_absolute_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/users/u")
    assert parse("dir:/var/store") == Path("/var/store")
    assert parse("dir:store/x") == tmp_path / "store" / "x"
    assert parse("dir:~/store") == Path("/users/u/store")


def test_an_s3_url_gives_server_bucket_and_keys() -> None:
    assert parse("s3://key:secret@host:9000/bucket?secure=false") == S3Location(
        "host:9000", "bucket", False, "key", "secret"
    )
    assert parse("s3://key:secret@s3.example.com/my-bucket") == S3Location(
        "s3.example.com", "my-bucket", True, "key", "secret"
    )
    assert parse("s3://k:s@[::1]:9000/bucket/").endpoint == "[::1]:9000"


def test_keys_in_a_url_are_percent_decoded() -> None:
    location = parse("s3://k%40y:a%2Fb+c%3A%3D@host/bucket")
    assert (location.access_key, location.secret_key) == ("k@y", "a/b+c:=")


def test_given_keys_are_used_where_the_url_has_none() -> None:
    location = parse("s3://host:9000/bucket", access_key="key", secret_key="secret")
    assert (location.access_key, location.secret_key) == ("key", "secret")
    location = parse("s3://mine:own@host:9000/bucket", access_key="key", secret_key="secret")
    assert (location.access_key, location.secret_key) == ("mine", "own")


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("", "dir:PATH"),
        ("store", "dir:PATH"),
        ("http://host/bucket", "s3://"),
        ("dir:", "names no folder"),
        ("s3://key:hidden@/bucket", "no host"),
        ("s3://key:hidden@host:port/bucket", "%2F"),
        ("s3://key:hid/den@host:9000/bucket", "%2F"),
        ("s3://key:hidden@host:9000", "bucket"),
        ("s3://key:hidden@host:9000/a/b", "bucket"),
        ("s3://key:hidden@host:9000/AB", "bucket"),
        ("s3://key:hidden@host:9000/ab", "bucket"),
        ("s3://key:hidden@host:9000/bucket?secure=no", "secure=false"),
        ("s3://key:hidden@host:9000/bucket?region=x", "region"),
        ("s3://host:9000/bucket", "SQUEEZEFLOW_STORE_ACCESS_KEY"),
        ("s3://key@host:9000/bucket", "SQUEEZEFLOW_STORE_SECRET_KEY"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_never_repeated(url: str, part: str) -> None:
    error = refusal(lambda: parse(url))
    assert error.reason == "INVALID_PARAMETER"
    assert part in error.message
    assert "hid" not in error.message


def test_the_keys_do_not_show() -> None:
    assert "secret" not in repr(parse("s3://key:secret@host:9000/bucket"))
