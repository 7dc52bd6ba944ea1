from __future__ import annotations

import pytest

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.toolchain import toolchain


def test_versions_are_those_that_are_installed() -> None:
    import numpy

    assert toolchain("numpy")["numpy"] == numpy.__version__
    assert "squeezeflow" in toolchain()


def test_a_package_that_is_not_installed_is_named_with_what_to_install() -> None:
    with pytest.raises(SqueezeflowError) as caught:
        toolchain("no-such-package-of-ours")
    assert caught.value.reason == "INVALID_PARAMETER"
    assert "no-such-package-of-ours" in caught.value.message
    assert "squeezeflow[all]" in caught.value.message
