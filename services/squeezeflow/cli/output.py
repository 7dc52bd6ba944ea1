"""Where a command writes: one answer on stdout, everything else on stderr.

With `--json` the answer is exactly one document: the API message, or `{"error": …}` where there is none.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from squeezeflow.core.errors import SqueezeflowError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console, RenderableType

# A table that goes to a file or pipe is as wide as it needs to be, within reason.
_FILE_WIDTH = 160


class Output:
    """Writes the answer of one command.

    Args:
        as_json: whether the answer is a JSON document.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.answered = False
        self.failed = False

    def message(self, message: Message) -> None:
        """Answers with an API message; only with `--json`."""
        if self.as_json:
            self.document(message_json(message))

    def document(self, text: str) -> None:
        """Answers with a JSON text; only with `--json`."""
        if self.as_json:
            self.answered = True
            print(text, flush=True)

    def show(self, *parts: RenderableType) -> None:
        """Answers with text or tables for a person; not with `--json`."""
        if not self.as_json:
            console = stdout_console()
            for part in parts:
                console.print(part, soft_wrap=isinstance(part, str))

    def tell(self, line: str) -> None:
        """Says on stderr what is going on."""
        print(line, file=sys.stderr, flush=True)

    def aside(self, line: str) -> None:
        """Says on stderr what a person at a terminal would wonder about."""
        if sys.stderr.isatty():
            self.tell(line)

    def fail(self, error: SqueezeflowError) -> None:
        """Says on stderr what is wrong, in one line; with `--json` also as the document, where there is no other."""
        self.failed = True
        if not self.answered:
            self.document(json.dumps({"error": _error_fields(error)}, indent=2, ensure_ascii=False))
        self.tell(error_line(error))


def error_line(error: SqueezeflowError) -> str:
    """Gives `REASON: what is wrong and what to change`, always one line."""
    return f"{error.reason}: {' '.join(error.message.split())}"


def message_json(message: Message) -> str:
    """Gives the proto JSON of a message: proto field names, zero values printed, keys sorted (maps have no order)."""
    from google.protobuf import json_format

    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        sort_keys=True,
        ensure_ascii=False,
    )


def stdout_console() -> Console:
    """Gives a console for answers: plain and wide where stdout is no terminal."""
    return _console(sys.stdout)


def stderr_console() -> Console:
    """Gives a console for progress."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    from rich.console import Console

    # Names and messages are shown as they are: brackets and colons in them mean nothing.
    if stream.isatty():
        return Console(file=stream, markup=False, emoji=False, highlight=False)
    return Console(
        file=stream,
        width=_FILE_WIDTH,
        color_system=None,
        force_terminal=False,
        markup=False,
        emoji=False,
        highlight=False,
    )


def _error_fields(error: SqueezeflowError) -> dict[str, Any]:
    return {"reason": error.reason, "message": error.message, "metadata": error.metadata}
