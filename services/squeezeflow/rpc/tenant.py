"""Whose call it is: taken from call metadata by the interceptor, read wherever a path or name is made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar

from squeezeflow.core.errors import SqueezeflowError

METADATA_KEY = "squeezeflow-tenant"
DEFAULT_TENANT = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_current: ContextVar[str] = ContextVar("tenant", default=DEFAULT_TENANT)


def current_tenant() -> str:
    """Gives the tenant of the call being served."""
    return _current.get()


def enter_tenant(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Sets the tenant of this call from its metadata.

    Raises:
        SqueezeflowError: INVALID_PARAMETER when the name is not one.
    """
    tenant = dict(metadata).get(METADATA_KEY, DEFAULT_TENANT)
    if not isinstance(tenant, str) or not _NAME.fullmatch(tenant):
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"metadata {METADATA_KEY} must match {_NAME.pattern}",
            fields=[(METADATA_KEY, f"must match {_NAME.pattern}")],
        )
    _current.set(tenant)


def tenant_metadata(tenant: str) -> tuple[tuple[str, str], ...]:
    """Gives the metadata that claims a tenant."""
    return ((METADATA_KEY, tenant),)
