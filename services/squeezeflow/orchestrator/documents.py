"""Jobs in the store, as documents: `tenants/<tenant>/jobs/<id>`, canonical proto JSON. Blocking; call it from a thread.

Ids begin with the time counted down, so that the store's ascending order of keys lists the newest job first.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence

from google.protobuf import json_format

from squeezeflow.core.canonical import canonical_json, sha256_text
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import Store
from squeezeflow.orchestrator.record import message_to_json
from squeezeflow.v1 import jobs_pb2

_END_OF_TIME_MS = (1 << 48) - 1


def new_id() -> str:
    """Gives an id that sorts before every earlier one."""
    return f"{_END_OF_TIME_MS - time.time_ns() // 1_000_000:012x}-{secrets.token_hex(4)}"


class JobDocuments:
    """The documents of all tenants in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, tenant: str, job: jobs_pb2.Job) -> None:
        """Writes a job's document."""
        self._store.put_bytes(_key(tenant, job.id), canonical_json(message_to_json(job)).encode())

    def get(self, tenant: str, job: str) -> jobs_pb2.Job | None:
        """Gives a job as it was last written."""
        try:
            data = self._store.get_bytes(_key(tenant, job))
        except SqueezeflowError as error:
            if error.reason == "NOT_FOUND":
                return None
            raise
        return json_format.ParseDict(json.loads(data), jobs_pb2.Job(), ignore_unknown_fields=True)

    def ids(self, tenant: str, *, start_after: str, limit: int) -> Sequence[str]:
        """Gives ids, the newest first."""
        prefix = _key(tenant, "")
        keys = self._store.list(prefix, start_after=prefix + start_after if start_after else "", limit=limit)
        return [key.removeprefix(prefix) for key in keys]

    def claimed(self, tenant: str, request_id: str) -> str:
        """Gives the job that a request id stands for; empty where it is new."""
        try:
            return self._store.get_bytes(_claim_key(tenant, request_id)).decode()
        except SqueezeflowError as error:
            if error.reason == "NOT_FOUND":
                return ""
            raise

    def claim(self, tenant: str, request_id: str, job: str) -> None:
        """Makes a request id stand for a job."""
        self._store.put_bytes(_claim_key(tenant, request_id), job.encode())


def _claim_key(tenant: str, request_id: str) -> str:
    return f"tenants/{tenant}/requests/{sha256_text(request_id)}"


def _key(tenant: str, job: str) -> str:
    return f"tenants/{tenant}/jobs/{job}"
