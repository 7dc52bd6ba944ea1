"""Describes a model: what it is, and what each technique would do with it. Nothing of the model's own is run.

A TFLite file is read as the flatbuffer it is, without TensorFlow; a SavedModel's protos are read without loading it,
unless tf_keras saved it: that, as any Keras model, is scanned, then loaded. What the scan finds is told, and such a
model is not loaded.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sizes import sizes_of
from squeezeflow.core.step import ArtifactPath
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import clusterable, layers, quantizable, scan, support
from squeezeflow.v1 import artifact_pb2, model_pb2

_TECHNIQUES = ("convert", "export", "quantize", "train_quantized", "prune", "cluster")
# What trains layers, and what each says where no layer is there for it.
_TRAINED = {
    "train_quantized": "no layer has a kernel to train with fake quantization",
    "prune": "no layer has a kernel to prune",
    "cluster": "no layer has a kernel to cluster",
}
_NOT_A_SOURCE = "the file is TFLite already: give the Keras model or SavedModel that it was made from"
_NO_LAYERS = "a SavedModel is a graph without layers{}: give the .keras or .h5 file that it was exported from"
_AT_ONCE = ", or set one_shot"


def describe(payload: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Describes one model; what a sandbox child runs.

    Args:
        payload: `artifact`: [kind, path]; `signature`: of a SavedModel, empty for the default.
        report: not used; a description is quick.

    Gives `description`: base64 of a `ModelDescription` without its `artifact`.
    Errors: MALFORMED_MODEL, UNSUPPORTED_INPUT (not a model), INVALID_PARAMETER (no such signature).
    """
    kind, path = payload["artifact"]
    description = description_of(ArtifactPath(kind, Path(path)), payload.get("signature", ""))
    return {"description": base64.b64encode(description.SerializeToString()).decode()}


def description_of(model: ArtifactPath, signature: str = "") -> model_pb2.ModelDescription:
    """Gives the description of a model; errors as `describe`."""
    if model.kind == artifact_pb2.ARTIFACT_KIND_TFLITE:
        description = _tflite(model.path)
    elif model.kind == artifact_pb2.ARTIFACT_KIND_SAVED_MODEL:
        description = _saved_model(model, signature)
    elif model.kind in (artifact_pb2.ARTIFACT_KIND_KERAS, artifact_pb2.ARTIFACT_KIND_HDF5):
        description = _keras(model)
    else:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"a {artifact_pb2.ArtifactKind.Name(model.kind)} artifact is not a model: give a model to describe",
        )
    description.sizes.CopyFrom(sizes_of(model.path))
    return description


def _tflite(path: Path) -> model_pb2.ModelDescription:
    file = TfliteFile.read(path)
    return model_pb2.ModelDescription(
        format="TFLite",
        contract=contracts.contract_of(file),
        signatures=[signature.key for signature in file.signatures],
        parameters=file.parameters,
        macs=file.macs,
        arena_peak_bytes=file.arena_peak_bytes,
        notes=file.accounting_notes,
        techniques=_support(dict.fromkeys(_TECHNIQUES, _NOT_A_SOURCE)),
        tensors=file.tensors,
        operators=file.operators,
    )


def _saved_model(model: ArtifactPath, wanted: str) -> model_pb2.ModelDescription:
    from squeezeflow.modelkit import keras_metadata, saved_model_source

    graph = saved_model_source.meta_graph(saved_model_source.read_proto(model.path))
    names = saved_model_source.signatures(graph)
    description = model_pb2.ModelDescription(
        format="SavedModel",
        written_by=f"tensorflow {graph.meta_info_def.tensorflow_version}".strip(),
        signatures=names,
        parameters=saved_model_source.count_parameters(model.path),
        findings=scan.scan(model),
    )
    reason = ""
    try:
        signature = saved_model_source.choose(names, wanted)
        description.contract.CopyFrom(saved_model_source.contract_of(graph, signature))
        saved_model_source.require_numbers(graph, signature)
    except SqueezeflowError as error:
        # Which signature to take is the caller's to say; a name that is not there is an error.
        if wanted and error.reason == "INVALID_PARAMETER":
            raise
        reason = error.message
    reason = _refused(description) or reason
    why_graph = ""
    if not reason and keras_metadata.root_of(model.path, graph):
        from squeezeflow.modelkit import keras_saved_model

        source = keras_saved_model.as_keras(saved_model_source.open_saved_model(model.path, wanted))
        if source.model is not None:
            description.format, description.written_by = source.format, source.written_by
            description.contract.CopyFrom(source.contract)
            description.notes.extend(source.notes)
            _describe_layers(description, source.model, "", "")
            return description
        why_graph = f" ({source.why_graph})"
    no_layers = _NO_LAYERS.format(why_graph)
    reasons = dict.fromkeys(("convert", "export", "quantize"), reason)
    reasons["train_quantized"] = _refused(description) or no_layers
    reasons |= dict.fromkeys(("prune", "cluster"), _refused(description) or f"{no_layers}{_AT_ONCE}")
    description.techniques.extend(_support(reasons))
    return description


def _keras(model: ArtifactPath) -> model_pb2.ModelDescription:
    findings = scan.scan(model)
    from squeezeflow.modelkit import keras_source

    facts = keras_source.read_file(model.path)
    description = model_pb2.ModelDescription(format=facts.format, written_by=facts.written_by, findings=findings)
    if findings:
        description.techniques.extend(_support(dict.fromkeys(_TECHNIQUES, _refused(description))))
        return description
    loaded, keras3, _ = keras_source.load(model.path, facts)
    reason = ""
    try:
        keras_source.require_shape(loaded)
        description.contract.CopyFrom(keras_source.contract_of(loaded, facts.compiled))
        keras_source.require_numbers(loaded, description.contract)
    except SqueezeflowError as error:
        reason = error.message
    trainable = reason or (_twin_reason(loaded) if keras3 else "")
    _describe_layers(description, loaded, reason, trainable)
    return description


def _describe_layers(description: model_pb2.ModelDescription, loaded: Any, reason: str, trainable: str) -> None:
    """Adds a Keras model's layers, and the techniques with them; reasons as in `_model_reasons`."""
    description.parameters = sum(math.prod(weight.shape) for weight in loaded.weights)
    description.layers.extend(_layer(path, layer) for path, layer in layers.walk(loaded))
    description.techniques.extend(_support(_model_reasons(description, reason, trainable)))


def _layer(path: str, layer: Any) -> model_pb2.LayerDescription:
    reasons = {
        "convert": support.convert_reason(layer),
        "quantize": support.quantize_reason(layer),
        "train_quantized": quantizable.train_quantized_reason(layer),
        "prune": support.prune_reason(layer),
        "cluster": clusterable.cluster_reason(layer),
    }
    return model_pb2.LayerDescription(
        name=path,
        class_name=type(layer).__name__,
        parameters=sum(math.prod(weight.shape) for weight in layer.weights),
        output_shape=layers.output_shape(layer),
        techniques=_support(reasons),
    )


def _twin_reason(model: Any) -> str:
    """Says why a Keras 3 model cannot be rebuilt in tf_keras, which training needs; empty where it can."""
    from squeezeflow.modelkit.bridge.replay import twin_of_model

    try:
        twin_of_model(model)
    except SqueezeflowError as error:
        return error.message
    return ""


def _model_reasons(description: model_pb2.ModelDescription, reason: str, trainable: str) -> dict[str, str]:
    """Gives why each technique does not take a Keras model; a layer that does not convert is named.

    Args:
        reason: why nothing takes it; empty where something does.
        trainable: why nothing that trains takes it.
    """
    unconvertible = [
        f"{layer.name}: {technique.reason}"
        for layer in description.layers
        for technique in layer.techniques
        if technique.technique == "convert" and not technique.supported
    ]
    convert = reason or "; ".join(unconvertible)
    taken = {
        technique.technique
        for layer in description.layers
        for technique in layer.techniques
        if technique.supported and layer.parameters
    }
    trained = {name: trainable or ("" if name in taken else no_layer) for name, no_layer in _TRAINED.items()}
    return {"convert": convert, "export": reason, "quantize": convert, **trained}


def _support(reasons: dict[str, str]) -> list[model_pb2.TechniqueSupport]:
    return [
        model_pb2.TechniqueSupport(technique=name, supported=not reason, reason=reason)
        for name, reason in reasons.items()
    ]


def _refused(description: model_pb2.ModelDescription) -> str:
    return "the model carries code: see findings" if description.findings else ""
