from __future__ import annotations

import pytest

from squeezeflow.cli.settings import global_first


@pytest.mark.parametrize(
    ("written", "ordered"),
    [
        ("jobs list --json", "--json jobs list"),
        ("jobs get 1 --server a:1", "--server a:1 jobs get 1"),
        ("compress m --server=a:1 --json --out d", "--server=a:1 --json compress m --out d"),
        ("--json infer n --inference b:2 --data f", "--json --inference b:2 infer n --data f"),
        ("infer --converter", "--converter infer"),
        ("artifacts get -- --json", "artifacts get -- --json"),
    ],
)
def test_global_options_may_stand_anywhere_before_a_double_dash(written, ordered):
    assert global_first(written.split()) == ordered.split()
