"""Calibration: the samples with which the converter finds the range of every activation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from squeezeflow.core.datasets import BoundData
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import Report
from squeezeflow.modelkit import data
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import technique_pb2


def calibrate(
    converter: Any,
    source: Source,
    bound: BoundData | None,
    params: technique_pb2.Quantize,
    report: Report,
    *,
    mode: str,
) -> tuple[str, ...]:
    """Gives the converter the samples with which it finds the range of every activation; tells which ones.

    Errors: DATA_MISSING.
    """
    if bound is None:
        raise SqueezeflowError(
            "DATA_MISSING",
            f"{mode} needs calibration samples: give data with x_calibration or x_train, or use mode MODE_DYNAMIC",
            metadata={"split": "calibration"},
        )
    samples = data.representative(bound, source, count=params.calibration_samples, seed=params.seed)
    own = bound.count("calibration")
    count = own or min(params.calibration_samples, bound.count("train"))

    def told() -> Iterator[dict[str, np.ndarray]]:
        for done, sample in enumerate(samples(), start=1):
            yield sample
            report(0.2 + 0.4 * done / count, "calibrating")

    converter.representative_dataset = told
    split = "calibration" if own else "train"
    sizes = f" in {bound.sizes(split)} sizes" if bound.sizes(split) > 1 else ""
    if own:
        return (f"calibrated on all {own} samples of calibration{sizes}",)
    return (f"calibrated on {count} samples of train{sizes}, drawn by seed {params.seed}",)
