"""Who needs a step right now: jobs that want the same one share it, and only the last to leave may end it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

Key = tuple[str, str]


class References:
    """Counts the jobs of this process that hold a step, by tenant and node."""

    def __init__(self) -> None:
        self._held: Counter[Key] = Counter()
        self._ending: dict[Key, asyncio.Event] = {}

    @asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[None]:
        """Holds a step; waits first while another job is ending it, so as not to attach to a step that dies."""
        while key in self._ending:
            await self._ending[key].wait()
        self._held[key] += 1
        try:
            yield
        finally:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]

    def last(self, key: Key) -> bool:
        """Tells whether nobody else holds the step."""
        return self._held[key] == 1

    @contextmanager
    def ending(self, key: Key) -> Iterator[None]:
        """Keeps others from holding the step while it is being ended."""
        ended = self._ending[key] = asyncio.Event()
        try:
            yield
        finally:
            del self._ending[key]
            ended.set()
