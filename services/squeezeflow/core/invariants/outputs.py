"""What a produced file computes, against its source on the same samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.figures import max_abs_diff, sqnr_db
from squeezeflow.core.invariants.places import tensor_place
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.v1 import step_pb2

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

# Largest difference by mode, times max(1, max |y|). Spotify's own conversion of basic-pitch is off by 1e-3.
TOLERANCES = {"float32": 2e-3, "float16": 1e-2}
MIN_SQNR_DB = 5.0
# Below this share of its size a source's output is constant but for rounding.
STILL = 1e-6


def finite(outputs: Arrays) -> step_pb2.Invariant:
    """Holds when no output has a NaN or an infinity; axis 0 of each array is the sample."""
    bad = []
    for name, values in outputs.items():
        wrong = ~np.isfinite(values) if values.dtype.kind in "fc" else np.zeros(values.shape, np.bool_)
        if wrong.any():
            index = np.argwhere(wrong)[0].tolist()
            bad.append(
                f"output {name}: {int(wrong.sum())} of {values.size} values, first {values[tuple(index)]} at {index}"
            )
    total = sum(values.size for values in outputs.values())
    return _invariant("finite", not bad, "; ".join(bad) or f"all {total} values of {len(outputs)} outputs are finite")


def alive(
    reference: Arrays,
    outputs: Arrays,
    *,
    kernels: TfliteFile | Arrays | None = None,
    source_kernels: Arrays | None = None,
    output_steps: Mapping[str, float] | None = None,
) -> step_pb2.Invariant:
    """Holds when outputs vary over the samples where the source's do, and no kernel has become all zero.

    Args:
        reference, outputs: the source's and the produced outputs by name, the same samples along axis 0.
        kernels: where the produced kernels are: the file, or Keras weights by name.
        source_kernels: the source's weights by name; where not given, all-zero kernels are told and not judged.
        output_steps: by output, the smallest difference that its quantization can show: a source that varies by less
            counts as constant.
    """
    dead = [
        f"output {name} is constant over {len(values)} samples where the source's varies by {variation:.3g}"
        for name, values, variation in _varying(reference, outputs, output_steps or {})
        if _variation(values) == 0.0
    ]
    zeroed, told = _zero_kernels(kernels, source_kernels)
    return _invariant("alive", not dead and not zeroed, "; ".join([*dead, *zeroed, *told]))


def close(
    reference: Arrays, outputs: Arrays, *, mode: str, min_sqnr_db: float = MIN_SQNR_DB, source: str = ""
) -> step_pb2.Invariant:
    """Holds when the outputs are those of the source within what the mode allows.

    Args:
        mode: `float32`, `float16`, or any quantized mode.
        min_sqnr_db: quantized modes: lowest signal-to-noise ratio of any output, in decibels.
        source: where the samples are from, for the detail: `test`, `synthetic`.
    """
    passed, parts = True, []
    for name, expected in reference.items():
        if name not in outputs or outputs[name].shape != expected.shape:
            have = list(outputs[name].shape) if name in outputs else "no such output"
            passed = False
            parts.append(f"output {name}: the source gives {list(expected.shape)}, the result {have}")
            continue
        good, text = _compare(expected, outputs[name], mode, min_sqnr_db)
        passed = passed and good
        parts.append(f"output {name}: {text}")
    count = len(next(iter(reference.values()), ()))
    return _invariant("close", passed, f"{'; '.join(parts)} ({count} samples{', ' + source if source else ''})")


def _compare(expected: Array, values: Array, mode: str, min_sqnr_db: float) -> tuple[bool, str]:
    difference = max_abs_diff(expected, values)
    if mode in TOLERANCES:
        largest = float(np.abs(expected.astype(np.float64)).max(initial=0.0))
        limit = TOLERANCES[mode] * max(1.0, largest)
        # NaN compares false: it is never close.
        return difference <= limit, f"max abs diff {difference:.3g}, limit {limit:.3g} for {mode}"
    ratio = sqnr_db(expected, values)
    text = f"SQNR {ratio:.1f} dB, least {min_sqnr_db:g} dB; max abs diff {difference:.3g}"
    if expected.ndim > 1 and expected.shape[-1] > 1:
        flips = np.argmax(expected, axis=-1) != np.argmax(values, axis=-1)
        text += f", {int(flips.sum())} of {flips.size} labels flipped"
    return ratio >= min_sqnr_db, text


def _varying(
    reference: Arrays, outputs: Arrays, output_steps: Mapping[str, float]
) -> Iterator[tuple[str, Array, float]]:
    for name, expected in reference.items():
        variation = _variation(expected)
        largest = float(np.abs(expected.astype(np.float64)).max(initial=0.0))
        still = max(output_steps.get(name, 0.0), STILL * max(1.0, largest))
        if name in outputs and len(expected) > 1 and variation > still:
            yield name, outputs[name], variation


def _variation(values: Array) -> float:
    """Gives the largest range over samples of any element."""
    return float(np.ptp(values.astype(np.float64), axis=0).max(initial=0.0)) if len(values) else 0.0


def _zero_kernels(kernels: TfliteFile | Arrays | None, source: Arrays | None) -> tuple[list[str], list[str]]:
    """Gives what is all zero and should not be, and what else is to be told."""
    if kernels is None:
        return [], ["kernels not looked at"]
    known = None if source is None else Counter(v.size for v in source.values() if v.ndim > 1 and not np.any(v))
    zeroed, told, count, channels = [], [], 0, 0
    for name, size, all_zero, zero_channels in _kernels(kernels):
        count += 1
        channels += zero_channels
        if not all_zero:
            continue
        if known is None:
            told.append(f"kernel {name} is all zero, the source's weights are not known")
        elif known[size] > 0:
            known[size] -= 1
            told.append(f"kernel {name} is all zero, as in the source")
        else:
            zeroed.append(f"kernel {name} of {size} weights has become all zero")
    return zeroed, [*told, f"{count} kernels looked at, {channels} output channels are all zero"]


def _kernels(kernels: TfliteFile | Arrays) -> Iterator[tuple[str, int, bool, int]]:
    if isinstance(kernels, TfliteFile):
        for weight in kernels.weights:
            yield (
                tensor_place(kernels, weight.tensor, weight.subgraph),
                weight.tensor.size,
                weight.zeros == weight.tensor.size,
                weight.zero_channels,
            )
    else:
        for name, values in kernels.items():
            if values.ndim > 1:
                # Keras keeps output channels last.
                channels = values.reshape(-1, values.shape[-1])
                yield name, values.size, not np.any(values), int((~channels.any(axis=0)).sum())


def _invariant(name: str, passed: bool, detail: str) -> step_pb2.Invariant:
    return step_pb2.Invariant(name=name, passed=passed, detail=detail)
