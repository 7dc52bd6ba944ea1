"""Quantize after training, with the TFLite converter: dynamic range, or full integer with float inputs and outputs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from squeezeflow.core import invariants
from squeezeflow.core.datasets import BoundData
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import clustered, conversion, data, proof, pruned, threads
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.v1 import artifact_pb2, step_pb2, technique_pb2

# Mode → the word that proofs and recipes have for it.
MODES = {technique_pb2.Quantize.MODE_DYNAMIC: "dynamic", technique_pb2.Quantize.MODE_INT8: "int8"}


def run(params: technique_pb2.Quantize, inputs: StepInputs, report: Report) -> StepOutputs:
    """Quantizes the model to `model.tflite` in the step's folder.

    Errors: as Convert; DATA_MISSING (int8 without calibration or train arrays), OUTPUT_MISMATCH (below `min_sqnr_db`).
    """
    threads.limit(inputs.threads)
    mode = MODES[params.mode]
    began = time.perf_counter()
    report(0.0, "loading")
    source = open_source(inputs.model, inputs.signature)
    bound = data.bind(inputs, source.contract)
    loaded = time.perf_counter()

    converter = source.converter()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    calibrated: tuple[str, ...] = ()
    if mode == "int8":
        calibrated = calibrate(converter, source, bound, params, report)
    report(0.2, "converting")
    target = inputs.workdir / "model.tflite"
    conversion.convert(converter, target)
    converted = time.perf_counter()

    report(0.8, "proving")
    proved = proof.prove(
        source,
        target,
        bound=bound,
        mode=mode,
        min_sqnr_db=params.min_sqnr_db,
        seed=params.seed,
        threads=inputs.threads,
    )
    file = TfliteFile.read(target)
    integers, notes = check_integers(file, mode)
    kept = invariants.require([integers, *pruned.sparsity_kept(source, file), *clustered.clusters_kept(source, file)])
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, target),
        contract=proved.contract,
        metrics=proved.metrics,
        invariants=(*proved.invariants, *kept),
        notes=(*source.notes, *(bound.notes if bound else ()), *calibrated, *notes, *proved.notes),
        seconds={"load": loaded - began, "convert": converted - loaded, "prove": time.perf_counter() - converted},
    )


def calibrate(
    converter: Any, source: Source, bound: BoundData | None, params: technique_pb2.Quantize, report: Report
) -> tuple[str, ...]:
    """Gives the converter the samples with which it finds the range of every activation; tells which ones.

    Errors: DATA_MISSING.
    """
    if bound is None:
        raise SqueezeflowError(
            "DATA_MISSING",
            "int8 needs calibration samples: give data with x_calibration or x_train, or use mode MODE_DYNAMIC",
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
    if own:
        return (f"calibrated on all {own} samples of calibration",)
    return (f"calibrated on {count} samples of train, drawn by seed {params.seed}",)


def check_integers(file: TfliteFile, mode: str) -> tuple[step_pb2.Invariant, tuple[str, ...]]:
    """Gives the `integer` invariant of the mode, and notes that name what stayed float.

    An operator without an int8 kernel may stay float; a file in which no weight became int8 was not quantized at all.
    """
    if mode == "dynamic":
        return invariants.dynamic_range(file), ()
    left = invariants.float_operators(file)
    quantized = not file.weights or any(weight.tensor.dtype == "int8" for weight in file.weights)
    allowed = [name.split(" ×")[0] for name in left] if quantized else []
    notes = (f"left float, for want of an int8 kernel: {', '.join(left)}",) if left else ()
    return invariants.integer(file, "int8", allowed=allowed), notes
