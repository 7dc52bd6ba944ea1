"""A model that a technique starts from, whatever wrote it: its contract, its predictions, a converter for it.

`open_source` scans first and loads after; nothing of a model with code in it is ever run. `Source` is one small
interface with two implementations: Keras models of both libraries, and SavedModels. A SavedModel that tf_keras saved is
a Keras model where its signature is that model's forward pass (`keras_saved_model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants.origins import Key, Node
from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import scan
from squeezeflow.modelkit.compile_config import CompileConfig
from squeezeflow.v1 import artifact_pb2, contract_pb2

Arrays = Mapping[str, npt.NDArray[Any]]


class Inside(Protocol):
    """A model while it computes one sample."""

    def like(self, nodes: Sequence[Node]) -> dict[Key, list[np.ndarray]]:
        """Gives, by node of another graph, the tensors that it may be by its names; absent where they tell none."""

    def nodes(self) -> tuple[list[Node], Mapping[Key, np.ndarray]]:
        """Gives all computed floats, in an order of execution, and their values by key."""

    def constants(self, node: Node) -> str:
        """Names the weights that are not finite among what a node takes; empty where there are none."""


class Source(Protocol):
    """A loaded model.

    Attributes:
        contract: its inputs and outputs under its own names; `signature_name` is not set.
        format, written_by: as in `ModelDescription`.
        notes: what the caller should know about how it was loaded.
        keras: the tf_keras model; None where it is not one (Keras 3, a graph).
        model: the Keras model of either library; None for a SavedModel that is a graph.
        why_graph: why a SavedModel that tf_keras saved is a graph all the same; empty for everything else.
        compile_config: loss, optimizer and learning rate that the file names.
        signature_inputs, signature_outputs: contract name → name in the signature of what `converter` converts.
    """

    contract: contract_pb2.Contract
    format: str
    written_by: str
    notes: tuple[str, ...]
    keras: Any
    model: Any
    why_graph: str
    compile_config: CompileConfig
    signature_inputs: Mapping[str, str]
    signature_outputs: Mapping[str, str]

    def predict(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Gives the outputs by contract name for a batch of samples by contract name."""

    def inside(self, sample: Arrays) -> Inside:
        """Looks into the model while it computes one sample, given by contract name; for explaining failures."""

    def converter(self) -> Any:
        """Gives a fresh TFLiteConverter of the model's one signature."""

    def graph(self) -> Any:
        """Gives what `converter` converts as a GraphDef, with its functions."""

    def kernels(self) -> dict[str, np.ndarray]:
        """Gives the weights by name, and for a SavedModel its constants too."""

    def export(self, folder: Path) -> None:
        """Writes the model as a SavedModel with the signature `serving_default` under contract names."""


def open_source(model: ArtifactPath, signature: str = "", *, as_graph: bool = False) -> Source:
    """Scans and loads a model.

    Args:
        model: a `.keras`, an HDF5 file or a SavedModel folder.
        signature: of a SavedModel; empty: the only one, or `serving_default`.
        as_graph: a SavedModel is taken as a graph, whatever wrote it: for what gives a SavedModel back.

    Errors: CODE_IN_MODEL, MALFORMED_MODEL, UNSUPPORTED_INPUT (string or ragged inputs, a format that is not a source),
    INVALID_PARAMETER (no such signature; the message lists those there are).
    """
    scan.refuse(scan.scan(model))
    if model.kind in (artifact_pb2.ARTIFACT_KIND_KERAS, artifact_pb2.ARTIFACT_KIND_HDF5):
        if signature:
            raise SqueezeflowError(
                "INVALID_PARAMETER",
                f"signature {signature} was asked for, but a Keras file has none: leave signature empty",
                fields=(("model.signature", "only a SavedModel has signatures"),),
            )
        from squeezeflow.modelkit import keras_source

        return keras_source.open_keras(model.path)
    if model.kind == artifact_pb2.ARTIFACT_KIND_SAVED_MODEL:
        from squeezeflow.modelkit import keras_saved_model, saved_model_source

        graph = saved_model_source.open_saved_model(model.path, signature)
        return graph if as_graph else keras_saved_model.as_keras(graph)
    kind = artifact_pb2.ArtifactKind.Name(model.kind).removeprefix("ARTIFACT_KIND_")
    raise SqueezeflowError(
        "UNSUPPORTED_INPUT",
        f"a {kind} artifact cannot be transformed: give a Keras model (.keras, .h5) or a SavedModel",
    )
