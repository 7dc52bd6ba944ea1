"""Everything that is stored lies below its tenant: `tenants/<tenant>/…`."""

from __future__ import annotations

import re

from squeezeflow.core.errors import SqueezeflowError

_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def check_tenant(tenant: str) -> str:
    """Gives the name back; INVALID_PARAMETER when it is not 1 to 63 lowercase letters, digits and '-'."""
    if not _TENANT.fullmatch(tenant):
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"tenant {tenant[:80]!r} is refused; use 1 to 63 lowercase letters, digits and '-', not '-' first",
            fields=[("squeezeflow-tenant", "1 to 63 lowercase letters, digits and '-'")],
        )
    return tenant


def tenant_prefix(tenant: str) -> str:
    """Gives the prefix of every store key of a tenant: `tenants/<tenant>/`."""
    return f"tenants/{check_tenant(tenant)}/"
