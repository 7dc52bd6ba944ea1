"""Zeros in patterns: what is counted, and that a broken pattern is named."""

from __future__ import annotations

import numpy as np
import pytest

from squeezeflow.core.invariants import block_sparsity, crowded_groups, m_by_n_sparsity, zero_blocks


def test_groups_are_counted_along_the_axis_and_the_last_one_is_filled_up_with_zeros() -> None:
    kernel = np.ones((6, 2), np.float32)
    assert crowded_groups(kernel, 2, 4, 0) == (2, 4)
    kernel[[0, 3]] = 0
    assert crowded_groups(kernel, 2, 4, 0) == (0, 4)
    assert crowded_groups(kernel, 1, 2, 1) == (4, 6)
    assert crowded_groups(kernel.reshape(1, 1, 6, 2), 2, 4, -2) == (0, 4)


def test_blocks_at_the_edges_count_as_blocks() -> None:
    kernel = np.ones((5, 7), np.float32)
    kernel[4:, 6:] = 0
    kernel[0:2, 0:2] = 0
    assert zero_blocks(kernel, 2, 2) == (2, 12)
    assert zero_blocks(kernel, 8, 8) == (0, 1)


@pytest.mark.parametrize(("value", "passed"), [(0.0, True), (1e-30, False)])
def test_a_group_with_a_weight_too_many_breaks_the_promise_and_names_the_layer(value: float, passed: bool) -> None:
    kernel = np.tile(np.array([[1.0], [0.0], [2.0], [0.0]], np.float32), (2, 3))
    kernel[5, 1] = value
    found = m_by_n_sparsity({"whole": np.zeros((4, 1)), "dense": kernel}, 2, 4)
    assert found.passed is passed
    assert found.detail.startswith("dense 1 of 6 groups of 4 weights with fewer than 2 zeros") is not passed


@pytest.mark.parametrize(("value", "passed"), [(0.0, True), (1e-30, False)])
def test_a_block_too_few_breaks_the_promise_and_names_the_layer(value: float, passed: bool) -> None:
    kernel = np.ones((4, 4), np.float32)
    kernel[:2] = 0
    kernel[1, 1] = value
    found = block_sparsity({"dense": kernel}, {"dense": 0.5}, 2, 2)
    assert found.passed is passed
    assert f"dense {2 if passed else 1} of 4 blocks of 2 × 2 are zero" in found.detail
    assert found.detail.endswith("least 2")
