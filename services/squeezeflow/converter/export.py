"""Export: a model in another format, read back and proved equal."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.modelkit import data, keras_file, proof, threads
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.v1 import artifact_pb2, technique_pb2


def run(params: technique_pb2.Export, inputs: StepInputs, report: Report) -> StepOutputs:
    """Writes the model as a SavedModel, or as `.keras`, into the step's folder.

    The SavedModel has one signature, `serving_default`, under the model's own names. A Keras 3 model stays Keras 3.
    Errors: as Convert; UNSUPPORTED_INPUT where a SavedModel that is a graph should become `.keras`.
    """
    threads.limit(inputs.threads)
    report(0.0, "loading")
    began = time.perf_counter()
    source = open_source(inputs.model, inputs.signature)
    bound = data.bind(inputs, source.contract)
    loaded = time.perf_counter()
    report(0.3, "exporting")
    if params.format == technique_pb2.Export.FORMAT_KERAS:
        written = _keras(source, inputs.workdir)
    else:
        written = _saved_model(source, inputs.workdir)
    exported = time.perf_counter()
    report(0.7, "proving")
    proved = proof.prove_same(source, open_source(written), bound=bound)
    return StepOutputs(
        artifact=written,
        contract=proved.contract,
        metrics=proved.metrics,
        invariants=proved.invariants,
        notes=(*source.notes, *(bound.notes if bound else ()), *proved.notes),
        seconds={"load": loaded - began, "export": exported - loaded, "prove": time.perf_counter() - exported},
    )


def _saved_model(source: Source, workdir: Path) -> ArtifactPath:
    target = workdir / "model"
    source.export(target)
    return ArtifactPath(artifact_pb2.ARTIFACT_KIND_SAVED_MODEL, target)


def _keras(source: Source, workdir: Path) -> ArtifactPath:
    if source.model is None:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"a SavedModel is a graph without layers{f' ({source.why_graph})' if source.why_graph else ''} and cannot "
            "become a .keras file: export the Keras model that it was made from, or ask for a SavedModel",
        )
    target = workdir / "model.keras"
    if source.keras is not None:
        keras_file.write_keras(source.keras, target, source.compile_config)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source.model.save(str(target))
    return ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, target)
