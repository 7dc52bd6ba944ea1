"""Figures with their intervals: accuracy, drops, flips, errors, latencies, signal-to-noise.

Every interval is at 95 %. Proportions use score intervals, which stay inside [0, 1] and keep their coverage near 0 and
1, where the normal approximation gives nonsense. Whatever is compared with a baseline is paired on the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.v1 import step_pb2

# 97.5 % quantile of the standard normal distribution.
Z = 1.959963984540054
# Identical tensors have no noise; a finite figure can be compared, stored and printed.
SQNR_CAP_DB = 200.0

Array = npt.NDArray[Any]
Numbers = Array | Sequence[float]


def wilson(successes: int, n: int) -> step_pb2.Metric:
    """Gives a proportion with its Wilson score interval (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    Args:
        successes: 0 to n.
        n: number of trials, at least 1.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is not a proportion")
    low, high = _score_interval(successes, n)
    return step_pb2.Metric(value=successes / n, low=low, high=high, samples=n)


def accuracy(correct: Array) -> step_pb2.Metric:
    """Gives the share of samples that are right; `correct` holds one bool a sample."""
    right = _flat_bools(correct)
    return wilson(int(right.sum()), right.size)


def accuracy_drop(base_correct: Array, candidate_correct: Array) -> step_pb2.Metric:
    """Gives accuracy(baseline) − accuracy(candidate) on the same samples; positive is worse.

    The interval is Newcombe's method 10: the Wilson limits of both proportions, squared and added, with the
    continuity-corrected phi of the paired table (Newcombe 1998, Statist. Med. 17:2635–2650).
    """
    base, candidate = _flat_bools(base_correct), _flat_bools(candidate_correct)
    _require_pairs(base, candidate)
    both, only_base = int((base & candidate).sum()), int((base & ~candidate).sum())
    only_candidate = int((~base & candidate).sum())
    neither = base.size - both - only_base - only_candidate
    low, high = _paired_interval(both, only_base, only_candidate, neither)
    return step_pb2.Metric(value=(only_base - only_candidate) / base.size, low=low, high=high, samples=base.size)


def label_flips(base_labels: Array, labels: Array) -> step_pb2.Metric:
    """Gives the share of samples whose label differs from the baseline's, right or wrong, with its Wilson interval."""
    base, candidate = np.asarray(base_labels).reshape(-1), np.asarray(labels).reshape(-1)
    _require_pairs(base, candidate)
    return wilson(int((base != candidate).sum()), base.size)


def mae(errors: Array) -> step_pb2.Metric:
    """Gives the mean absolute error over samples; axis 0 of `errors` is the sample, signs do not matter."""
    return _mean(_per_sample(errors), floor=0.0)


def mae_increase(base_errors: Array, errors: Array) -> step_pb2.Metric:
    """Gives mae(candidate) − mae(baseline), paired by sample; positive is worse."""
    base, candidate = _per_sample(base_errors), _per_sample(errors)
    _require_pairs(base, candidate)
    return _mean(candidate - base)


def latencies(milliseconds: Numbers) -> dict[str, step_pb2.Metric]:
    """Gives `latency_p50_ms` and `latency_p95_ms` of the timed runs, with distribution-free intervals."""
    ordered = np.sort(np.asarray(milliseconds, dtype=np.float64))
    if not ordered.size:
        raise ValueError("no runs were timed")
    return {"latency_p50_ms": _percentile(ordered, 0.50), "latency_p95_ms": _percentile(ordered, 0.95)}


def latency_ratio(base_milliseconds: Numbers, milliseconds: Numbers) -> step_pb2.Metric:
    """Gives median(candidate) / median(baseline) of runs that were interleaved; below 1 is faster."""
    ratio = float(np.median(np.asarray(milliseconds)) / np.median(np.asarray(base_milliseconds)))
    return step_pb2.Metric(value=ratio, samples=len(milliseconds))


def sqnr_db(reference: Array, value: Array) -> float:
    """Gives 10·log10(Σ reference² / Σ (reference − value)²) in decibels, within ±200; NaN where either holds NaN."""
    signal = np.asarray(reference, dtype=np.float64)
    noise = signal - np.asarray(value, dtype=np.float64)
    signal_power, noise_power = float(np.sum(np.square(signal))), float(np.sum(np.square(noise)))
    if math.isnan(signal_power) or math.isnan(noise_power):
        return math.nan
    if noise_power == 0.0:
        return SQNR_CAP_DB
    if signal_power == 0.0 or math.isinf(noise_power):
        return -SQNR_CAP_DB
    return min(SQNR_CAP_DB, max(-SQNR_CAP_DB, 10.0 * math.log10(signal_power / noise_power)))


def max_abs_diff(reference: Array, value: Array) -> float:
    """Gives max |reference − value|; NaN where either holds NaN, 0 for empty arrays."""
    difference = np.abs(np.asarray(reference, dtype=np.float64) - np.asarray(value, dtype=np.float64))
    return float(difference.max()) if difference.size else 0.0


def _score_interval(successes: int, n: int) -> tuple[float, float]:
    p, z2 = successes / n, Z * Z
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At the ends the formula gives exactly 0 and 1 up to rounding.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high


def _paired_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    n = both + only_first + only_second + neither
    p1, p2 = (both + only_first) / n, (both + only_second) / n
    (l1, u1), (l2, u2) = _score_interval(both + only_first, n), _score_interval(both + only_second, n)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    cross = both * neither - only_first * only_second
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    phi = corrected / math.sqrt(margins) if margins else 0.0
    below = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    above = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    return max(-1.0, p1 - p2 - math.sqrt(below)), min(1.0, p1 - p2 + math.sqrt(above))


def _mean(values: Array, floor: float = -math.inf) -> step_pb2.Metric:
    if not values.size:
        raise ValueError("no samples")
    mean = float(values.mean())
    metric = step_pb2.Metric(value=mean, samples=values.size)
    if values.size > 1:
        half = Z * float(values.std(ddof=1)) / math.sqrt(values.size)
        metric.low, metric.high = max(floor, mean - half), mean + half
    return metric


def _percentile(ordered: Array, q: float) -> step_pb2.Metric:
    # The interval is between order statistics: no assumption about the distribution, which has a long right tail.
    n = ordered.size
    half = Z * math.sqrt(n * q * (1 - q))
    low = ordered[max(0, math.floor(n * q - half))]
    high = ordered[min(n - 1, math.ceil(n * q + half))]
    value = float(np.quantile(ordered, q))
    return step_pb2.Metric(value=value, low=min(value, float(low)), high=max(value, float(high)), samples=n)


def _per_sample(errors: Array) -> Array:
    values = np.abs(np.asarray(errors, dtype=np.float64))
    return values.reshape(values.shape[0], -1).mean(axis=1) if values.size else np.zeros(0)


def _flat_bools(values: Array) -> npt.NDArray[np.bool_]:
    return np.asarray(values, dtype=np.bool_).reshape(-1)


def _require_pairs(first: Array, second: Array) -> None:
    if first.shape != second.shape or not first.size:
        raise ValueError(f"{first.size} and {second.size} samples are not pairs")
