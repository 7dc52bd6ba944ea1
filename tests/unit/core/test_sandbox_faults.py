"""How deaths and messages of a child become typed errors; what it says is data of an untrusted process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import faults


def crash(code: int | None, *, peak_mib: float = 10, limit_mib: int = 100, log: str = "") -> SqueezeflowError:
    return faults.crashed(faults.Exit(code), limit_mib=limit_mib, peak_mib=peak_mib, stage="convert", log=log)


def tail(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return faults.last_lines(descriptor)
    finally:
        os.close(descriptor)


def test_a_kill_near_the_memory_limit_is_the_end_of_memory() -> None:
    error = crash(-signal.SIGKILL, peak_mib=81)
    assert error.reason == "OUT_OF_MEMORY"
    assert error.metadata["memory_limit_mib"] == "100"
    assert error.metadata["peak_memory_mib"] == "81"


def test_a_kill_far_from_the_memory_limit_is_a_crash() -> None:
    error = crash(-signal.SIGKILL, peak_mib=79)
    assert error.reason == "CHILD_CRASHED"
    assert error.metadata["signal"] == "SIGKILL"
    assert error.metadata["stage"] == "convert"
    assert "during 'convert'" in error.message


def test_another_signal_near_the_memory_limit_is_a_crash() -> None:
    assert crash(-signal.SIGSEGV, peak_mib=99).reason == "CHILD_CRASHED"


def test_a_signal_without_a_name_is_told_by_number() -> None:
    assert crash(-(signal.SIGRTMIN + 1)).metadata["signal"] == f"signal {signal.SIGRTMIN + 1}"


def test_a_death_with_the_fork_server_asks_to_run_the_step_again() -> None:
    error = crash(None)
    assert error.reason == "CHILD_CRASHED"
    assert "run the step again" in error.message


def test_the_last_lines_of_a_log_are_few_short_and_clean(tmp_path: Path) -> None:
    text = tail(tmp_path / "log", b"".join(b"\x1b[31mline %d\x1b[0m\t\x07|\x00\r\n" % n for n in range(100)))
    lines = text.splitlines()
    assert len(lines) == faults.LOG_LINES
    assert lines[-1] == "line 99  |"
    assert all(character == "\n" or character.isprintable() for character in text)


def test_one_endless_line_is_cut_in_bytes_and_stays_text(tmp_path: Path) -> None:
    text = tail(tmp_path / "log", "ä".encode() * 100_000 + b"\xff")
    assert 0 < len(text.encode()) <= faults.LOG_BYTES
    assert text.startswith(("ä", "\ufffd"))


def test_an_error_of_a_child_keeps_everything_it_tells() -> None:
    error = faults.raised(
        {
            "kind": "error",
            "reason": "DATA_MISMATCH",
            "message": "m",
            "metadata": {"array": "x"},
            "fields": [["a.b", "c"]],
        }
    )
    assert (error.reason, error.message) == ("DATA_MISMATCH", "m")
    assert error.metadata == {"array": "x"}
    assert error.fields == (("a.b", "c"),)


@pytest.mark.parametrize(
    "header",
    [
        {"kind": "error"},
        {"kind": "error", "reason": "NO_SUCH", "message": 3, "metadata": [1], "fields": {"a": 1}},
        {"kind": "error", "reason": ["INTERNAL"], "message": "\ud800", "metadata": {"k": {}}, "fields": ["ab", [1]]},
        {"kind": "raised", "type": None, "text": "x" * 100_000, "traceback": 1},
    ],
)
def test_an_error_that_makes_no_sense_is_still_one_clean_error(header: dict[str, object]) -> None:
    error = faults.raised(header)
    assert error.reason == "INTERNAL"
    assert len(error.message) < 10_000
    error.to_proto().SerializeToString()


def test_the_message_of_an_exception_is_one_line() -> None:
    error = faults.raised({"kind": "raised", "type": "ValueError", "text": "a\nb", "traceback": "t"})
    assert "ValueError: a b" in error.message
    assert error.metadata == {"traceback": "t"}
