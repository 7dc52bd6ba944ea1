"""SavedModels that tf_keras wrote, as the Keras models that they were: what QAT and fine-tuning can train.

`tf_keras.Model.save(folder)` keeps the model's configuration beside the graph. The model is rebuilt from that, as one
in an HDF5 file is, and its weights are read from the checkpoint. Only classes and functions that the scan knows are
ever built, and no function of the SavedModel becomes a part of the model.

The signature wins. A caller asks for a signature, and the Keras model stands for it only where it is the plain forward
pass of that model: inputs and outputs of the same names, shapes and types, and, on random samples, the same values.
Names too, since what is trained is a Keras file under the model's names, to which the caller's arrays must still fit.
Everything else stays the graph that it is: a signature that prepares its input, has other outputs or a fixed batch, a
model with a layer or a class of the author's own, one that tf_keras cannot rebuild. It converts all the same;
`why_graph` says why nothing can train it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from squeezeflow.core import figures
from squeezeflow.core.datasets import synthetic_inputs
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import compile_config, keras_metadata, keras_source, layers, saved_model_source
from squeezeflow.modelkit.keras_metadata import KerasRoot
from squeezeflow.modelkit.keras_names import MODELS
from squeezeflow.modelkit.keras_source import KerasSource
from squeezeflow.modelkit.saved_model_source import SavedModelSource
from squeezeflow.modelkit.scan_config import scan_config
from squeezeflow.v1 import contract_pb2

FORMAT = "Keras SavedModel"
# The same layers run the same kernels: what differs is the order of sums. Relative to the largest output.
EQUAL = 1e-5
SAMPLES = 8
_SHOWN = 3
_TAKEN = (
    "read as the Keras model that was saved: signature {} gives the same outputs on {} random samples, largest "
    "relative difference {:.2g}"
)
_LEFT = "taken as a graph, not as the Keras model that was saved: {}"


def as_keras(graph: SavedModelSource) -> KerasSource | SavedModelSource:
    """Gives the Keras model that an opened, scanned SavedModel was saved from; else the graph, with `why_graph`.

    Errors: MALFORMED_MODEL.
    """
    root = keras_metadata.root_of(
        graph.folder, saved_model_source.meta_graph(saved_model_source.read_proto(graph.folder))
    )
    if root is None:
        return graph
    rebuilt = _rebuilt(graph, root)
    if isinstance(rebuilt, KerasSource):
        return rebuilt
    graph.why_graph = rebuilt
    graph.notes += (_LEFT.format(rebuilt),)
    return graph


def _rebuilt(graph: SavedModelSource, root: KerasRoot) -> KerasSource | str:
    """Gives the Keras model, or says why it cannot stand for the signature."""
    why = why_unknown(root)
    if why:
        return why
    try:
        model = _load(root, graph.folder)
        keras_source.require_shape(model)
    except SqueezeflowError as error:
        return error.message
    except Exception as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"tf_keras cannot rebuild it ({cause[:200]})"
    facts = keras_source.KerasFile(FORMAT, root.version, compile_config.read(root.training), False)
    contract = _contract(graph, model, keras_source.contract_of(model, facts.compiled))
    if isinstance(contract, str):
        return contract
    source = KerasSource(
        model,
        keras3=False,
        format=FORMAT,
        written_by=facts.written_by,
        compiled=facts.compiled,
        contract=contract,
    )
    return _proved(graph, source)


def why_unknown(root: KerasRoot) -> str:
    """Says what of a saved Keras object is not plain Keras, naming layer and class; empty where everything is."""
    findings = scan_config(root.config)
    if findings:
        rest = f"; and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
        return "; ".join(findings[:_SHOWN]) + rest
    name = root.config["class_name"]
    return "" if name in MODELS else f"what was saved is a {name}, not a model"


def _load(root: KerasRoot, folder: Path) -> Any:
    import tf_keras

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tf_keras.models.model_from_config(keras_metadata.decoded(root.config))
        if model.weights:
            # By place in the model, not by name; a weight that the checkpoint has not is an error.
            status = model.load_weights(str(folder / "variables" / "variables"))
            status.assert_existing_objects_matched().expect_partial()
    return model


def _contract(graph: SavedModelSource, model: Any, own: contract_pb2.Contract) -> contract_pb2.Contract | str:
    """Gives the contract of both, in the Keras model's order, or says in what the two differ."""
    signature = graph.contract.signature
    forced = bool(layers.fixed_batch_layers(model)) or graph.fixes_batch
    contract = contract_pb2.Contract(signature=signature)
    contract.MergeFrom(own)
    for what, tensors, wanted in (
        ("input", contract.inputs, graph.contract.inputs),
        ("output", contract.outputs, graph.contract.outputs),
    ):
        by_name = {tensor.name: tensor for tensor in wanted}
        if {tensor.name for tensor in tensors} != set(by_name):
            names = [", ".join(sorted(tensor.name for tensor in side)) for side in (wanted, tensors)]
            return f"the {what}s of signature {signature} are {names[0]}, those of the model {names[1]}"
        for tensor in tensors:
            other = by_name[tensor.name]
            if tensor.dtype != other.dtype or not _fit(what, tensor.shape, other.shape, forced):
                forms = [f"{side.dtype} {list(side.shape)}" for side in (other, tensor)]
                return f"{what} {tensor.name} is {forms[0]} in signature {signature}, {forms[1]} in the model"
    return contract


def _fit(what: str, own: Any, wanted: Any, forced: bool) -> bool:
    """Tells whether two shapes are one: inputs exactly, since a signature may narrow them; of outputs less is known.

    Args:
        forced: whether the batch of either may have been fixed to 1 so that it converts.
    """
    if what == "output" and not wanted:
        return True
    if len(own) != len(wanted):
        return False
    pairs = list(zip(own, wanted, strict=True))
    if pairs and forced and sorted(pairs[0]) == [-1, 1]:
        pairs = pairs[1:]
    return all(one == other or (what == "output" and -1 in (one, other)) for one, other in pairs)


def _proved(graph: SavedModelSource, source: KerasSource) -> KerasSource | str:
    signature = graph.contract.signature
    samples = synthetic_inputs(source.contract, SAMPLES, 0)
    try:
        expected, found = graph.predict(samples), source.predict(samples)
    except Exception as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"signature {signature} and the model cannot be compared ({cause[:200]})"
    worst = 0.0
    for name, values in expected.items():
        difference = _difference(values, found[name])
        if not difference <= EQUAL:
            return (
                f"signature {signature} is not the model's own forward pass: output {name} differs by {difference:.3g} "
                f"of its largest value (limit {EQUAL:g}, {SAMPLES} random samples)"
            )
        worst = max(worst, difference)
    source.notes = (*source.notes, _TAKEN.format(signature, SAMPLES, worst))
    return source


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return float("inf")
    largest = float(np.abs(np.asarray(expected, np.float64)).max(initial=0.0)) or 1.0
    return figures.max_abs_diff(expected, found) / largest
