"""Layers chosen by name patterns: which ones a technique works on, and settings that hold for some of them only."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import TypeVar

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import technique_pb2

Setting = TypeVar("Setting")


def left_out(selection: technique_pb2.LayerSelection, path: str, within: Sequence[str] = ()) -> str:
    """Says why a request leaves a layer out; empty where it does not.

    Args:
        path: the layer's name, nested models' layers under the path of their model.
        within: the names of the wrappers that it lies in: whoever names one means all that is in it.
    """
    names = (path, *within)
    if selection.include and not any(_names(pattern, names) for pattern in selection.include):
        return f"left out by the request: layers.include names {', '.join(selection.include)}"
    for pattern in selection.exclude:
        if _names(pattern, names):
            return f"left out by the request: layers.exclude names {pattern}"
    return ""


def setting_of(
    rules: Iterable[tuple[str, Setting]], path: str, default: Setting, within: Sequence[str] = ()
) -> Setting:
    """Gives what the last rule (pattern, setting) that names a layer, or a wrapper around it, says, or the default."""
    chosen = default
    for pattern, setting in rules:
        if _names(pattern, (path, *within)):
            chosen = setting
    return chosen


def require_matches(patterns: Iterable[tuple[str, str]], paths: Sequence[str]) -> None:
    """Refuses patterns that name no layer.

    Args:
        patterns: (field of the request, pattern).
        paths: names of all layers.

    Errors: INVALID_PARAMETER naming field and pattern, and the layers there are.
    """
    for field, pattern in patterns:
        if not _names(pattern, paths):
            message = f"{field}: no layer is named {pattern}: choose from {', '.join(paths[:40])}"
            raise SqueezeflowError("INVALID_PARAMETER", message, fields=[(f"params.{field}", message)])


def selection_patterns(selection: technique_pb2.LayerSelection) -> list[tuple[str, str]]:
    """Gives the patterns of a selection with their fields, for `require_matches`."""
    return [
        *(("layers.include", pattern) for pattern in selection.include),
        *(("layers.exclude", pattern) for pattern in selection.exclude),
    ]


def _names(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)
