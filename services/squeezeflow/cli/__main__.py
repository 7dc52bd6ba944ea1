"""The command line `squeezeflow`: parses, runs a command, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from squeezeflow.cli import exits
from squeezeflow.cli.app import app
from squeezeflow.cli.embedded.home import home_of
from squeezeflow.cli.exits import Terminated, UsageError
from squeezeflow.cli.output import Output
from squeezeflow.cli.settings import global_first
from squeezeflow.core.errors import SqueezeflowError


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits the process."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and gives its exit code."""
    ordered = global_first(arguments)
    output = Output(as_json="--json" in ordered)
    try:
        code = app(ordered, prog_name="squeezeflow", obj=output, standalone_mode=False) or exits.DONE
        # Typer makes a code of Ctrl-C, and says nothing.
        return _interrupted(output) if code == exits.INTERRUPTED else code
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(output)
    except BrokenPipeError:
        # Whoever read our answer has enough of it; the interpreter must not try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.DONE
    except UsageError as refused:
        output.fail(refused.error)
        return exits.USAGE
    except SqueezeflowError as error:
        output.fail(error)
        return exits.code_of(error.reason)
    except Exception as error:
        return _unexpected(output, error)


def _interrupted(output: Output) -> int:
    if not output.failed:
        output.fail(SqueezeflowError("CANCELLED", "interrupted"))
    return exits.INTERRUPTED


def _unexpected(output: Output, error: Exception) -> int:
    # Typer's own errors have no public base class in all versions that we take.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        message = error.format_message() or "no command"
        output.fail(SqueezeflowError("INVALID_PARAMETER", f"{message} (squeezeflow --help tells what there is)"))
        return exits.USAGE
    message = f"{type(error).__name__}: {error}: this is a defect of Squeezeflow"
    output.fail(SqueezeflowError("INTERNAL", f"{message} (its traceback: {_keep_traceback(error)})"))
    return exits.BROKEN


def _keep_traceback(error: Exception) -> Path:
    log = home_of(os.environ).logs / "cli.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return log


def _terminate(number: int, frame: object) -> None:
    del number, frame
    raise Terminated


if __name__ == "__main__":
    main()
