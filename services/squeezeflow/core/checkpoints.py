"""The states of fits that were not finished, one object an action, so that another process can go on with them.

A checkpoint is the best effort of a worker that may die at any time: it is replaced as a whole, it is read by whoever
runs the same action next, and it never decides a result, only how long it takes. Whoever ends an action removes its
checkpoint; what nobody could remove (its worker died, and no job asked again) is swept away when it is a day old.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from squeezeflow.core.artifacts import check_digest
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import CHUNK_BYTES, Store
from squeezeflow.core.tenants import tenant_prefix

# A state holds the weights up to four times: as they are, two moments of the optimizer, those of the best epoch.
MOST_BYTES = 4 << 30
# A fit that lives renews its checkpoint every few minutes; one that waits for a worker is called again within hours.
LEFTOVER = timedelta(days=1)
# Looked at in one sweep: one call of `list`, and at most so many of `stat`.
SWEPT = 50


class Checkpoints:
    """Keeps and finds the checkpoints of one tenant. Synchronous and thread-safe.

    Every method raises STORE_UNAVAILABLE when the store does not answer, and INVALID_PARAMETER for what is no digest.
    """

    def __init__(self, store: Store, tenant: str) -> None:
        self._store = store
        self._prefix = f"{tenant_prefix(tenant)}checkpoints/"

    def put(self, action: str, path: Path) -> None:
        """Stores a file as the checkpoint of an action, in place of an older one.

        The file may be replaced by another while it is read. Errors: QUOTA_EXCEEDED for more than `MOST_BYTES`.
        """
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size > MOST_BYTES:
                raise SqueezeflowError(
                    "QUOTA_EXCEEDED", f"a checkpoint of {size} bytes is not stored: at most {MOST_BYTES} bytes are"
                )
            self._store.put(self._key(action), _chunks(file), size=size)

    def fetch(self, action: str, path: Path) -> bool:
        """Writes the checkpoint of an action into a file; False, and no file, where there is none."""
        key = self._key(action)
        if self._store.stat(key) is None:
            return False
        try:
            with path.open("wb") as file:
                for chunk in self._store.get(key):
                    file.write(chunk)
        except SqueezeflowError as error:
            path.unlink(missing_ok=True)
            if error.reason != "NOT_FOUND":  # another worker has finished the action in this moment
                raise
            return False
        return True

    def delete(self, action: str) -> None:
        """Removes the checkpoint of an action; there need not be one."""
        self._store.delete(self._key(action))

    def sweep(self, action: str) -> list[str]:
        """Removes checkpoints that were not renewed for as long as `LEFTOVER`, and gives their actions.

        Looks at `SWEPT` of them, those after an action's own: keys are digests, so every one has its turn.
        """
        oldest = datetime.now(UTC) - LEFTOVER
        removed = []
        for key in self._store.list(self._prefix, start_after=self._key(action), limit=SWEPT):
            found = self._store.stat(key)
            if found is not None and found.modified < oldest:
                self._store.delete(key)
                removed.append(key.removeprefix(self._prefix))
        return removed

    def _key(self, action: str) -> str:
        return f"{self._prefix}{check_digest(action)}"


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
