"""Quantize after training: chooses the back end, and runs the TFLite converter in any of its modes."""

from __future__ import annotations

import time

from squeezeflow.core import invariants
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import clustered, conversion, data, proof, pruned, threads
from squeezeflow.modelkit.source import open_source
from squeezeflow.quantizer import biases, calibration, checks, modes, unrolling
from squeezeflow.v1 import artifact_pb2, technique_pb2


def run(params: technique_pb2.Quantize, inputs: StepInputs, report: Report) -> StepOutputs:
    """Quantizes the model to `model.tflite` in the step's folder, with the back end that the request needs.

    Errors: as Convert; INVALID_PARAMETER (parameters that do not go together), DATA_MISSING (integer modes without
    calibration or train arrays), OUTPUT_MISMATCH (below `min_sqnr_db`).
    """
    if modes.backend(params, inputs.model.kind) == modes.AI_EDGE:
        # Not needed by the converter, and it imports a library of its own.
        from squeezeflow.quantizer import ai_edge

        return ai_edge.run(params, inputs, report)
    return run_converter(params, inputs, report)


def run_converter(params: technique_pb2.Quantize, inputs: StepInputs, report: Report) -> StepOutputs:
    """Quantizes a Keras model or a SavedModel with the TFLite converter."""
    threads.limit(inputs.threads)
    mode = modes.MODES[params.mode]
    began = time.perf_counter()
    report(0.0, "loading")
    source = open_source(inputs.model, inputs.signature)
    bound = data.bind(inputs, source.contract)
    loaded = time.perf_counter()

    prepared = unrolling.Prepared(source)
    if mode.calibrated and bound is not None:
        prepared = unrolling.prepare(source, mode=mode.name, bound=bound, workdir=inputs.workdir, report=report)
    converter = prepared.source.converter()
    modes.configure(converter, params)
    told: tuple[str, ...] = ()
    if mode.calibrated:
        told = calibration.calibrate(converter, source, bound, params, report, mode=mode.name)
        converter.representative_dataset = prepared.samples(converter.representative_dataset)
    report(0.2, "converting")
    target = inputs.workdir / "model.tflite"
    if params.sparse_encoding:
        told += conversion.convert_sparse(converter, target)
    else:
        prepared.convert(converter, target)
    if mode.name == "int16x8":
        biases.set_right(target)
    converted = time.perf_counter()

    report(0.8, "proving")
    file = checks.read_int16(target) if mode.name == "int16x8" else TfliteFile.read(target)
    proved = proof.prove(
        source,
        target,
        bound=bound,
        mode=mode.name,
        min_sqnr_db=params.min_sqnr_db,
        seed=params.seed,
        threads=inputs.threads,
    )
    integers, notes = checks.integers(file, mode.name)
    kept = invariants.require([*integers, *pruned.sparsity_kept(source, file), *clustered.clusters_kept(source, file)])
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, target),
        contract=proved.contract,
        metrics=proved.metrics,
        invariants=(*proved.invariants, *kept),
        layers=prepared.layers,
        notes=(*source.notes, *(bound.notes if bound else ()), *prepared.told(target), *told, *notes, *proved.notes),
        seconds={"load": loaded - began, "convert": converted - loaded, "prove": time.perf_counter() - converted},
    )
