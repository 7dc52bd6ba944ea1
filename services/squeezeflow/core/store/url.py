"""Store URLs: where the bytes lie and with which keys."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from squeezeflow.core.errors import SqueezeflowError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_FORMS = "use dir:PATH or s3://KEY:SECRET@HOST:PORT/BUCKET?secure=false"


@dataclass(frozen=True)
class S3Location:
    """A bucket on an S3 server. The keys are not shown in its repr."""

    endpoint: str
    bucket: str
    secure: bool
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)


def parse(url: str, *, access_key: str = "", secret_key: str = "") -> Path | S3Location:
    """Reads a store URL: a folder, or a bucket with its keys (percent-decoded; else those given).

    Raises:
        SqueezeflowError: INVALID_PARAMETER; the message never holds the URL, which may hold a secret.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "dir":
        if not rest:
            raise _refused(f"dir: names no folder; {_FORMS}")
        return Path(rest).expanduser().absolute()
    if scheme != "s3":
        raise _refused(f"unknown store URL; {_FORMS}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(
            f"host or port cannot be read; escape '/', '@' and ':' of the keys as %2F, %40, %3A; {_FORMS}"
        ) from error
    if not host:
        raise _refused(f"no host is named; {_FORMS}")
    bucket = parts.path.strip("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise _refused(
            f"bucket {bucket!r} is refused; name one of 3 to 63 lowercase letters, digits, '-' and '.' after the host"
        )
    secure = _secure(parts)
    access_key = unquote(parts.username or "") or access_key
    secret_key = unquote(parts.password or "") or secret_key
    if not access_key or not secret_key:
        raise _refused(
            "the keys are missing; put them into the URL or set SQUEEZEFLOW_STORE_ACCESS_KEY and "
            "SQUEEZEFLOW_STORE_SECRET_KEY"
        )
    shown = f"[{host}]" if ":" in host else host
    return S3Location(f"{shown}:{port}" if port else shown, bucket, secure, access_key, secret_key)


def _secure(parts: SplitResult) -> bool:
    options = parse_qsl(parts.query, keep_blank_values=True)
    for name, value in options:
        if name != "secure" or value not in ("true", "false"):
            raise _refused(f"option {name!r} is refused; the only one is secure=true or secure=false")
    return dict(options).get("secure", "true") == "true"


def _refused(what: str) -> SqueezeflowError:
    return SqueezeflowError("INVALID_PARAMETER", f"store URL: {what}", fields=[("store", what)])
