"""Checks the direction of imports: services → rpc, modelkit → core → v1. `make lint` runs it.

Also: TensorFlow stays out of the rooms that must install without it, gRPC out of core and the domain files, and no
service imports another.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "services" / "squeezeflow"
GENERATED = {"v1", "oip"}
MAY_IMPORT = {
    "core": {"core"},
    "rpc": {"rpc", "core"},
    "modelkit": {"modelkit", "core"},
    "client": {"client", "rpc", "core"},
    "cli": {"cli", "client", "rpc", "core"},
    "converter": {"converter", "rpc", "modelkit", "core"},
    "quantizer": {"quantizer", "rpc", "modelkit", "core"},
    "pruner": {"pruner", "rpc", "modelkit", "core"},
    "inference": {"inference", "rpc", "core"},
    "orchestrator": {"orchestrator", "rpc", "core"},
}
TENSORFLOW = {"tensorflow", "tf_keras", "keras", "tensorflow_model_optimization"}
TENSORFLOW_ROOMS = {"modelkit", "converter", "quantizer", "pruner"}
GRPC_ROOMS = {"rpc", "client"}
GRPC_FILES = {"service.py", "__main__.py"}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Gives line and dotted name of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def findings(path: Path, room: str) -> Iterator[str]:
    """Gives what one file imports against the direction."""
    speaks_grpc = room in GRPC_ROOMS or path.name in GRPC_FILES or path.name.endswith("_service.py")
    for line, name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        where = f"{path.relative_to(ROOT.parent.parent)}:{line}"
        if parts[0] == "squeezeflow" and len(parts) > 1 and parts[1] not in GENERATED | MAY_IMPORT[room]:
            yield f"{where}: {room} may not import {name}"
        if parts[0] in TENSORFLOW and room not in TENSORFLOW_ROOMS:
            yield f"{where}: {room} must not need {parts[0]}"
        if parts[0] == "grpc" and not speaks_grpc:
            yield f"{where}: gRPC is spoken in rpc/, client/, service.py and __main__.py only"


def main() -> int:
    """Prints every finding; 1 when there is one."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0]
        if room in GENERATED or room == "__init__.py":
            continue
        if room not in MAY_IMPORT:
            found.append(f"services/squeezeflow/{room}: a room without a place in the direction of imports")
            continue
        found += findings(path, room)
    print("\n".join(found) or "imports point the right way")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
