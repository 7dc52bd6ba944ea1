"""Versions of the libraries that decide what a step produces; they are part of every action."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

# The part of a version that changes when a technique of ours gives other bytes for the same input.
OUTPUT_FORMAT = "1"


def toolchain(*packages: str) -> Mapping[str, str]:
    """Gives package → version, and our own output format, without importing any of them."""
    return {"squeezeflow": OUTPUT_FORMAT, **{package: metadata.version(package) for package in packages}}
