"""What holds for every command: where the services are and what form the answer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Options that may stand before or after the command; those with a value first.
VALUED = ("--server", "--converter", "--inference")
FLAGS = ("--json",)


@dataclass(frozen=True)
class Settings:
    """The global options.

    Attributes:
        server, converter, inference: HOST:PORT; empty where not given.
        environ: the environment of this call.
    """

    server: str = ""
    converter: str = ""
    inference: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


def global_first(arguments: Sequence[str]) -> list[str]:
    """Moves global options before the command, so that they may be written anywhere on the line."""
    moved: list[str] = []
    rest: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        name, equals, _ = argument.partition("=")
        if argument == "--":
            rest += [argument, *pending]
        elif argument in FLAGS or (equals and name in VALUED):
            moved.append(argument)
        elif argument in VALUED:
            moved += [argument, *([value] if (value := next(pending, None)) is not None else [])]
        else:
            rest.append(argument)
    return [*moved, *rest]
