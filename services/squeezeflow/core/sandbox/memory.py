"""How much memory a child and what it started hold, read from /proc.

RLIMIT_AS is no use: TensorFlow maps gigabytes that it never touches. What counts is what is resident, pages shared
with the fork server included.
"""

from __future__ import annotations

import os

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


def resident_kib(leader: int) -> int:
    """Gives the resident KiB of a process and all its descendants; 0 when it has gone."""
    total, waiting = 0, [leader]
    while waiting:
        pid = waiting.pop()
        try:
            with open(f"/proc/{pid}/statm", "rb") as statm:
                total += int(statm.read().split()[1]) * _PAGE_KIB
            waiting += children(pid)
        except (OSError, IndexError):
            continue  # it ended while being looked at
    return total


def children(pid: int) -> list[int]:
    """Gives the processes that any thread of a process has started or adopted and that are not reaped yet."""
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as listing:
                found += map(int, listing.read().split())
        except OSError:
            continue  # the thread has just ended, or the kernel keeps no such list
    return found


def high_water_kib(pid: int) -> int:
    """Gives the most KiB that were ever resident in one process; 0 when it has gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1])
    except OSError:
        return 0  # it ended while being looked at
    return 0
