"""What went wrong in a child, as the typed error its caller gets.

Everything a child says is data of an untrusted process: reasons are checked, texts are cut and cleaned.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from squeezeflow.core.errors import REASONS, SqueezeflowError

LOG_LINES = 40
LOG_BYTES = 8 << 10
# A process that the kernel killed this close to its limit was killed for its memory: the limit's watch looks only
# every tenth of a second.
NEAR_LIMIT = 0.8

_MESSAGE_LIMIT = 4 << 10
_DETAILS_LIMIT = 64
# Terminal sequences, then every control character but the line feed.
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Exit:
    """How a child ended.

    Attributes:
        code: its exit code, or minus the number of the signal that killed it; None when the fork server died with it.
        max_rss_kib: the most memory it ever held.
    """

    code: int | None
    max_rss_kib: int = 0


def last_lines(log: int) -> str:
    """Gives the end of a log file (a descriptor) as clean text: at most `LOG_LINES` lines and `LOG_BYTES` bytes."""
    size = os.fstat(log).st_size
    data = os.pread(log, LOG_BYTES, max(0, size - LOG_BYTES))
    text = _CONTROL.sub(" ", _ANSI.sub("", data.decode(errors="replace").replace("\r\n", "\n")))
    lines = "\n".join(line.rstrip() for line in text.splitlines()[-LOG_LINES:])
    return lines.encode()[-LOG_BYTES:].decode(errors="ignore")


def crashed(ending: Exit, *, limit_mib: int, peak_mib: float, stage: str, log: str) -> SqueezeflowError:
    """Gives the error for a child that ended without an answer: CHILD_CRASHED, or OUT_OF_MEMORY where that was why."""
    code = ending.code
    signal_name = _signal_name(code)
    if code == -signal.SIGKILL and limit_mib and peak_mib >= NEAR_LIMIT * limit_mib:
        return out_of_memory(limit_mib=limit_mib, peak_mib=peak_mib, stage=stage, log=log)
    if code == -signal.SIGABRT and "std::bad_alloc" in log:
        return out_of_memory(limit_mib=limit_mib, peak_mib=peak_mib, stage=stage, log=log)
    during = f" during '{stage}'" if stage else ""
    metadata: dict[str, object] = {"signal": signal_name, "peak_memory_mib": round(peak_mib, 1), "log": log}
    if stage:
        metadata["stage"] = stage
    if code is None:
        message = f"the process that ran the step died{during} because its fork server was killed; run the step again"
        return SqueezeflowError("CHILD_CRASHED", message, metadata=metadata | {"signal": "SIGKILL"})
    if code == -signal.SIGKILL:
        what = f"was killed from outside (SIGKILL){during}; the machine may be out of memory: give it more, or run less"
    elif code < 0:
        what = f"died of {signal_name}{during}; the model or these parameters crash the engine: change one of them"
    else:
        metadata["exit_code"] = code
        what = f"ended by itself with exit code {code}{during} and gave no result; its last words are in the log"
    return SqueezeflowError("CHILD_CRASHED", f"the process that ran the step {what}", metadata=metadata)


def out_of_memory(
    *, limit_mib: int, peak_mib: float, stage: str, log: str = "", cause: Mapping[str, Any] | None = None
) -> SqueezeflowError:
    """Gives the error for a child that used, or asked for, more memory than it may."""
    during = f" during '{stage}'" if stage else ""
    metadata: dict[str, object] = {"memory_limit_mib": limit_mib, "peak_memory_mib": round(peak_mib, 1)}
    if stage:
        metadata["stage"] = stage
    if log:
        metadata["log"] = log
    if cause is not None:
        metadata["traceback"] = _text(cause.get("traceback"))
    message = (
        f"the step ran out of memory{during}: it held {peak_mib:.0f} MiB of the {limit_mib} MiB it may use; "
        "take a smaller model, a smaller batch or less data, or raise the memory limit"
    )
    return SqueezeflowError("OUT_OF_MEMORY", message, metadata=metadata)


def timed_out(what: str, seconds: float, *, stage: str, peak_mib: float) -> SqueezeflowError:
    """Gives the error for a child that was killed because it took too long."""
    during = f" during '{stage}'" if stage else ""
    metadata: dict[str, object] = {"seconds": f"{seconds:g}", "peak_memory_mib": round(peak_mib, 1)}
    if stage:
        metadata["stage"] = stage
    message = f"{what} took longer than its {seconds:g} s and was ended{during}; give it less work or more time"
    return SqueezeflowError("TIMED_OUT", message, metadata=metadata)


def protocol_broken(why: str, *, log: str) -> SqueezeflowError:
    """Gives the error for a child that sent what the protocol has no place for; it is killed."""
    what = _text(why)[:200]
    message = f"the process that ran the step sent what is no answer ({what}) and was ended; change the model"
    return SqueezeflowError("CHILD_CRASHED", message, metadata={"signal": "SIGKILL", "log": log})


def raised(header: Mapping[str, Any]) -> SqueezeflowError:
    """Gives the error that an `error` or `raised` frame carries."""
    if header.get("kind") == "error":
        reason, metadata, fields = header.get("reason"), header.get("metadata"), header.get("fields")
        return SqueezeflowError(
            reason if isinstance(reason, str) and reason in REASONS else "INTERNAL",
            _text(header.get("message")),
            metadata=_pairs(metadata.items() if isinstance(metadata, dict) else ()),
            fields=tuple(_pairs(fields if isinstance(fields, list) else ()).items()),
        )
    kind, text = _text(header.get("type")), _text(header.get("text"))
    one_line = " ".join(f"{kind}: {text}".split())
    message = f"the step failed unexpectedly: {one_line}; this is a defect, please report it with its traceback"
    return SqueezeflowError("INTERNAL", message, metadata={"traceback": _text(header.get("traceback"), LOG_BYTES)})


def _pairs(items: Any) -> dict[str, str]:
    pairs = [item for item in items if isinstance(item, list | tuple) and len(item) == 2]
    return {_text(key): _text(value, LOG_BYTES) for key, value in pairs[:_DETAILS_LIMIT]}


def _text(value: object, limit: int = _MESSAGE_LIMIT) -> str:
    """Gives at most `limit` characters of what should be text, encodable as UTF-8; the end counts in a traceback."""
    text = value if isinstance(value, str) else ""
    return text.encode(errors="replace").decode()[-limit:]


def _signal_name(code: int | None) -> str:
    if code is None or code >= 0:
        return ""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
