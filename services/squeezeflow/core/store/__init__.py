"""Bytes by key, in a folder or on an S3 server, behind one small interface.

Everything above (artifacts, actions, jobs) knows keys and nothing of where they lie. A put is atomic: a key holds
whole bytes or does not exist.
"""

from __future__ import annotations

from squeezeflow.core.store.directory import DirectoryStore
from squeezeflow.core.store.interface import CHUNK_BYTES, ObjectStat, Store
from squeezeflow.core.store.url import S3Location, parse

__all__ = ["CHUNK_BYTES", "ObjectStat", "Store", "open_store"]


def open_store(url: str, *, access_key: str = "", secret_key: str = "") -> Store:
    """Opens the store of a URL: `dir:PATH`, or `s3://KEY:SECRET@HOST:PORT/BUCKET?secure=false`.

    The keys given here are used where the URL holds none. A folder is made where it is missing; an S3 server is not
    asked before the first operation (or `check`), so that it may start later. The store is thread-safe and works on in
    a forked child.

    Raises:
        SqueezeflowError: INVALID_PARAMETER when the URL cannot be used, STORE_UNAVAILABLE when the folder cannot.
    """
    location = parse(url, access_key=access_key, secret_key=secret_key)
    if isinstance(location, S3Location):
        from squeezeflow.core.store.s3 import S3Store  # the client installs without an S3 SDK

        return S3Store(location)
    return DirectoryStore(location)
