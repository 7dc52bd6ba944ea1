"""What the children of a worker have imported, and which library versions enter its actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Engine:
    """The engine of a worker.

    Attributes:
        preload: modules that the fork server imports, and only imports.
        warm: `module:function` that takes first-use cost away in a spare child.
        packages: distributions whose versions decide what a step produces.
        env: environment of the children.
    """

    preload: Sequence[str]
    warm: str
    packages: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
