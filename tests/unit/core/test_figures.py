"""Intervals against published examples, and the edges where a formula divides by zero."""

from __future__ import annotations

import math

import numpy as np
import pytest

from squeezeflow.core import figures


def bools(*runs: tuple[bool, int]) -> np.ndarray:
    return np.concatenate([np.full(count, value) for value, count in runs])


def paired(both: int, only_base: int, only_candidate: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    base = bools((True, both + only_base), (False, only_candidate + neither))
    candidate = bools((True, both), (False, only_base), (True, only_candidate), (False, neither))
    return base, candidate


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Statist. Med. 17:857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_those_of_the_published_table(successes, n, low, high):
    metric = figures.wilson(successes, n)
    assert metric.value == successes / n
    assert metric.samples == n
    assert metric.low == pytest.approx(low, abs=5e-5)
    assert metric.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe 1998, Statist. Med. 17:2635-2650, table II, method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((53, 0, 0, 1), -0.0729, 0.0729),
    ],
)
def test_paired_intervals_are_those_of_the_published_table(table, low, high):
    metric = figures.accuracy_drop(*paired(*table))
    assert metric.value == pytest.approx((table[1] - table[2]) / sum(table))
    assert metric.low == pytest.approx(low, abs=5e-5)
    assert metric.high == pytest.approx(high, abs=5e-5)


def test_an_accuracy_drop_is_positive_when_the_candidate_is_worse():
    base, candidate = paired(80, 10, 2, 8)
    assert figures.accuracy_drop(base, candidate).value == pytest.approx(0.08)
    assert figures.accuracy_drop(candidate, base).value == pytest.approx(-0.08)


def test_a_paired_interval_is_narrower_than_that_of_unrelated_samples():
    agreeing = figures.accuracy_drop(*paired(890, 10, 0, 100))
    disagreeing = figures.accuracy_drop(*paired(800, 100, 90, 10))
    assert agreeing.value == disagreeing.value == pytest.approx(0.01)
    assert agreeing.high - agreeing.low < (disagreeing.high - disagreeing.low) / 2


@pytest.mark.parametrize("table", [(10, 0, 0, 0), (0, 0, 0, 10), (0, 10, 0, 0), (0, 0, 10, 0), (1, 0, 0, 0)])
def test_paired_intervals_hold_their_value_at_the_edges_of_the_table(table):
    metric = figures.accuracy_drop(*paired(*table))
    assert -1 <= metric.low <= metric.value <= metric.high <= 1


def test_accuracy_counts_right_samples():
    metric = figures.accuracy(np.array([True, True, False, True]))
    assert metric.value == 0.75
    assert metric.samples == 4
    assert 0 < metric.low < 0.75 < metric.high < 1


def test_flips_count_labels_that_differ_whether_right_or_wrong():
    metric = figures.label_flips(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 0]))
    assert metric.value == 0.5
    assert metric.samples == 4


def test_mean_absolute_error_ignores_signs_and_averages_within_a_sample_first():
    metric = figures.mae(np.array([[1.0, -3.0], [2.0, -2.0], [0.0, 0.0]]))
    assert metric.value == pytest.approx(4 / 3)
    assert metric.samples == 3
    half = figures.Z * np.std([2, 2, 0], ddof=1) / math.sqrt(3)
    assert metric.low == pytest.approx(max(0.0, 4 / 3 - half))
    assert metric.high == pytest.approx(4 / 3 + half)


def test_mae_of_one_sample_has_no_interval():
    metric = figures.mae(np.array([2.0]))
    assert metric.value == 2.0
    assert not metric.HasField("low")


def test_an_mae_increase_is_paired_by_sample():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 100, 500)
    metric = figures.mae_increase(base, np.abs(base) + 1 + rng.normal(0, 0.1, 500))
    assert metric.value == pytest.approx(1, abs=0.05)
    # Unpaired, the interval would be about ±12 wide.
    assert metric.high - metric.low < 0.1


def test_latency_percentiles_come_with_intervals_that_hold_them():
    metrics = figures.latencies(np.arange(1, 1001))
    assert metrics["latency_p50_ms"].value == pytest.approx(500.5)
    assert metrics["latency_p95_ms"].value == pytest.approx(950.05)
    for metric in metrics.values():
        assert metric.low < metric.value < metric.high
        assert metric.samples == 1000


def test_the_latency_ratio_is_below_one_for_the_faster():
    assert figures.latency_ratio([2.0, 2.0, 9.0], [1.0, 1.0, 1.0]).value == 0.5


def test_sqnr_is_ten_log_of_the_power_ratio():
    reference = np.full(100, 2.0)
    assert figures.sqnr_db(reference, reference + 0.2) == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("reference", "value", "expected"),
    [([1.0, 2.0], [1.0, 2.0], 200.0), ([0.0], [0.0], 200.0), ([0.0], [1.0], -200.0), ([1.0], [np.inf], -200.0)],
)
def test_sqnr_is_finite_whatever_the_noise(reference, value, expected):
    assert figures.sqnr_db(np.array(reference), np.array(value)) == expected


def test_sqnr_of_nan_is_nan():
    assert math.isnan(figures.sqnr_db(np.array([1.0]), np.array([np.nan])))


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.wilson(1, 0),
        lambda: figures.wilson(3, 2),
        lambda: figures.accuracy_drop(np.array([True]), np.array([True, False])),
        lambda: figures.label_flips(np.array([]), np.array([])),
        lambda: figures.mae(np.array([])),
        lambda: figures.latencies([]),
    ],
)
def test_figures_of_nothing_are_refused(call):
    with pytest.raises(ValueError):
        call()
