"""Whose call it is: taken from call metadata by the interceptor, read wherever a path or name is made."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

from squeezeflow.core.tenants import check_tenant

METADATA_KEY = "squeezeflow-tenant"
DEFAULT_TENANT = "default"
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
    _current.set(check_tenant(tenant if isinstance(tenant, str) else tenant.decode(errors="replace")))


def tenant_metadata(tenant: str) -> tuple[tuple[str, str], ...]:
    """Gives the metadata that claims a tenant."""
    return ((METADATA_KEY, tenant),)
