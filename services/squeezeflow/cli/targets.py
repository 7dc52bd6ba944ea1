"""What stands on the command line as FILE|DIGEST."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from squeezeflow.cli.exits import UsageError

if TYPE_CHECKING:
    from squeezeflow.client import Client

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_target(target: str) -> str:
    """Gives the target back where it is a path that exists, or a digest; refuses it before any call otherwise."""
    if not (Path(target).exists() or _DIGEST.fullmatch(target)):
        raise UsageError(
            "NOT_FOUND", f"{target} is neither a file or folder here nor a digest of 64 hex digits: correct it"
        )
    return target


def digest_of_target(client: Client, target: str) -> str:
    """Gives the digest that a target stands for; a file or folder is uploaded first."""
    return client.upload(target).digest if Path(target).exists() else target
