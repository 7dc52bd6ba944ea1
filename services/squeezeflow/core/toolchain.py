"""Versions of the libraries that decide what a step produces; they are part of every action."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from squeezeflow.core.errors import SqueezeflowError

# The part of a version that changes when a technique of ours gives other bytes for the same input.
OUTPUT_FORMAT = "1"


def toolchain(*packages: str) -> Mapping[str, str]:
    """Gives package → version, and our own output format, without importing any of them.

    Raises:
        SqueezeflowError: INVALID_PARAMETER that names a package which is not installed.
    """
    return {"squeezeflow": OUTPUT_FORMAT, **{package: _version(package) for package in packages}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"{package} is not installed: install the extra of this service, as in pip install 'squeezeflow[all]'",
        ) from error
