"""The two calls of Linux' prctl that tie the life of a process to another's; Python has no wrapper for them."""

from __future__ import annotations

import ctypes
import os

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded at import, so that nothing has to be loaded between a fork and the first call.
_LIBC = ctypes.CDLL(None, use_errno=True)


def signal_at_parents_death(number: int) -> None:
    """Has the kernel send this process a signal when the thread that started it ends; 0 for none."""
    _call(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent ends."""
    _call(_PR_SET_CHILD_SUBREAPER, 1)


def _call(option: int, argument: int) -> None:
    if _LIBC.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")
