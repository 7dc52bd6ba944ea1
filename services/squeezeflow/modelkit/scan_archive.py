"""Checks a `.keras` archive before anything reads its members: bounds, names, CRCs; then scans its configuration."""

from __future__ import annotations

import json
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit.scan_config import scan_config
from squeezeflow.modelkit.scan_hdf5 import scan_links

MAX_MEMBERS = 10_000
# Weights hardly deflate; pruned ones do, by at most this much in sizes that matter.
MAX_RATIO = 200
SMALL = 256 << 20
MAX_CONFIG = 64 << 20
# What both libraries write; weights as `.npz` would be an archive in the archive.
MEMBERS = frozenset({"config.json", "metadata.json", "model.weights.h5"})
FOLDERS = ("assets/",)
_CHUNK = 1 << 20


def scan_archive(path: Path) -> list[str]:
    """Gives the findings of a `.keras` file.

    Errors: MALFORMED_MODEL for what is no archive, is damaged, climbs out of its folder, or inflates.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.stat().st_size)
            config = _read_json(archive, "config.json")
            findings = scan_config(config)
            # Links are looked at only in a file that may be loaded at all.
            if not findings and "model.weights.h5" in archive.namelist():
                with archive.open("model.weights.h5") as weights:
                    findings = scan_links(weights)
            return findings
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError, KeyError) as error:
        raise malformed(str(error)) from error
    except RecursionError as error:
        raise malformed("its configuration is nested without end") from error


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise malformed(f"{len(members)} members; at most {MAX_MEMBERS} are taken")
    seen: set[str] = set()
    for member in members:
        parts = PurePosixPath(member.filename).parts
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.filename.startswith("/") or "\\" in member.filename or ".." in parts or ":" in member.filename:
            raise malformed(f"the member {member.filename!r} climbs out of its folder")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or member.flag_bits & 1:
            raise malformed(f"the member {member.filename!r} is a link, a device or encrypted")
        if member.filename not in MEMBERS and not member.filename.startswith(FOLDERS):
            raise malformed(f"the member {member.filename!r} is not one that Keras writes")
        if member.filename in seen:
            raise malformed(f"the member {member.filename!r} is there twice")
        seen.add(member.filename)
    limit = max(SMALL, MAX_RATIO * size)
    if sum(member.file_size for member in members) > limit:
        raise malformed(f"it inflates to more than {limit} bytes")
    for member in members:
        # Reading to the end checks the CRC, and that the member is not larger than the directory says.
        with archive.open(member) as stream:
            while stream.read(_CHUNK):
                continue


def _read_json(archive: zipfile.ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > MAX_CONFIG:
        raise malformed(f"{name} has more than {MAX_CONFIG} bytes")
    return json.loads(archive.read(name))


def malformed(cause: str) -> SqueezeflowError:
    """Gives the refusal of a Keras file that cannot be read."""
    first = next((line.strip() for line in cause.splitlines() if line.strip()), "it ends too early")
    return SqueezeflowError(
        "MALFORMED_MODEL",
        f"the Keras file cannot be read ({first[:300]}): save the model again and check that the upload is complete",
    )
