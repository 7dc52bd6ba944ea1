from __future__ import annotations

import pytest
from tests.store_suite import refusal

from squeezeflow.core.tenants import check_tenant, tenant_prefix


@pytest.mark.parametrize("tenant", ["default", "a", "0", "a-b-", "a" * 63])
def test_a_tenant_has_a_prefix_of_its_own(tenant: str) -> None:
    assert check_tenant(tenant) == tenant
    assert tenant_prefix(tenant) == f"tenants/{tenant}/"


@pytest.mark.parametrize("tenant", ["", "-a", "A", "a_b", "a/b", "..", ".", "a\n", "a" * 64, "ä"])
def test_any_other_name_is_refused(tenant: str) -> None:
    error = refusal(lambda: tenant_prefix(tenant))
    assert error.reason == "INVALID_PARAMETER"
    assert error.fields[0][0] == "squeezeflow-tenant"
