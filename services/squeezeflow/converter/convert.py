"""Convert: a model becomes float32 TFLite, and is proved equal to its source."""

from __future__ import annotations

import time

from squeezeflow.core import invariants
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import clustered, conversion, data, proof, pruned, threads
from squeezeflow.modelkit.source import open_source
from squeezeflow.v1 import artifact_pb2, technique_pb2


def run(params: technique_pb2.Convert, inputs: StepInputs, report: Report) -> StepOutputs:
    """Converts the model to `model.tflite` in the step's folder.

    Errors: MALFORMED_MODEL, CODE_IN_MODEL, UNSUPPORTED_OP, UNSUPPORTED_INPUT, INVALID_PARAMETER (signature),
    DATA_MISMATCH, NON_FINITE_OUTPUT, OUTPUT_MISMATCH, INVARIANT_BROKEN.
    """
    threads.limit(inputs.threads)
    report(0.0, "loading")
    began = time.perf_counter()
    source = open_source(inputs.model, inputs.signature)
    bound = data.bind(inputs, source.contract)
    loaded = time.perf_counter()
    report(0.3, "converting")
    target = inputs.workdir / "model.tflite"
    told: tuple[str, ...] = ()
    if params.sparse_encoding:
        told = conversion.convert_sparse(source.converter(), target)
    else:
        conversion.convert(source.converter(), target)
    converted = time.perf_counter()
    report(0.8, "proving")
    proved = proof.prove(source, target, bound=bound, mode="float32", threads=inputs.threads)
    file = TfliteFile.read(target)
    kept = invariants.require([*pruned.sparsity_kept(source, file), *clustered.clusters_kept(source, file)])
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, target),
        contract=proved.contract,
        metrics=proved.metrics,
        invariants=(*proved.invariants, *kept),
        notes=(*source.notes, *(bound.notes if bound else ()), *told, *proved.notes),
        seconds={
            "load": loaded - began,
            "convert": converted - loaded,
            "prove": time.perf_counter() - converted,
        },
    )
