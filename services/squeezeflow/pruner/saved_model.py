"""The kernels of a SavedModel, and the same SavedModel with other values in them.

The checkpoint is written anew, under the names that the graph restores: functions, assets and every other variable stay
what they were, byte by byte. Of several signatures only the chosen one stays: what a step makes has one signature.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import saved_model_source
from squeezeflow.modelkit.graph_kernels import GraphVariable, variables_of
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import artifact_pb2

_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True)
class SavedVariable:
    """A variable with two axes or more that the chosen signature reads.

    Attributes:
        variable: what the graph says of it.
        values: from the checkpoint.
        reason: why a technique leaves it as it is; empty where it is a kernel.
    """

    variable: GraphVariable
    values: np.ndarray
    reason: str

    @property
    def name(self) -> str:
        """The variable's name: `dense/kernel`."""
        return self.variable.name


def variables(source: Source) -> list[SavedVariable]:
    """Gives the variables of rank 2 and more that the chosen signature of a SavedModel reads, kernels or not."""
    folder = folder_of(source)
    if not (folder / "variables" / "variables.index").is_file():
        return []
    graph = saved_model_source.meta_graph(saved_model_source.read_proto(folder))
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    ranks = {name: len(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    return [
        SavedVariable(variable, values, _reason(variable, values))
        for variable in variables_of(graph, source.contract.signature)
        if ranks.get(variable.key, 0) > 1
        for values in [reader.get_tensor(variable.key)]
    ]


def prunable_variables(source: Source) -> dict[str, np.ndarray]:
    """Gives the kernels that the chosen signature of a SavedModel reads, by name.

    Kernels are float variables of rank 2 and more that a matrix product or a convolution takes.
    Errors: UNSUPPORTED_LAYER where there are none: a frozen graph holds constants.
    """
    found = variables(source)
    kernels = {variable.name: variable.values for variable in found if not variable.reason}
    if kernels:
        return kernels
    reasons = "; ".join(f"{variable.name}: {variable.reason}" for variable in found)
    cause = reasons[:600] or "its weights are constants of a frozen graph, or it has none"
    raise SqueezeflowError(
        "UNSUPPORTED_LAYER",
        f"no variable of signature {source.contract.signature} is a kernel ({cause}): give a SavedModel whose matrix "
        "products or convolutions read variables",
        metadata={variable.name: variable.reason for variable in found[:50]},
    )


def write_with(source: Source, values: Mapping[str, np.ndarray], folder: Path) -> ArtifactPath:
    """Writes a SavedModel again with other values for some of its variables.

    Args:
        source: a SavedModel.
        values: by names of `variables`; shape and dtype stay. A copy of a variable that the signature does not read, as
            Keras 3 exports them, gets the same values.
        folder: is made.

    Errors: INVARIANT_BROKEN where what is read back is not what was to be written.
    """
    origin = folder_of(source)
    shutil.copytree(origin, folder, ignore=_only_graph(origin))
    _keep_signature(folder, source.contract.signature)
    reader = tf.train.load_checkpoint(str(origin / "variables" / "variables"))
    tensors = {key: reader.get_tensor(key) for key in sorted(reader.get_variable_to_shape_map())}
    _replace(tensors, {variable.name: variable for variable in variables(source)}, values)
    (folder / "variables").mkdir()
    prefix = str(folder / "variables" / "variables")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    written = tf.train.load_checkpoint(prefix)
    for key, value in tensors.items():
        if not _same(written.get_tensor(key), value):
            raise SqueezeflowError("INVARIANT_BROKEN", f"variable {key} is not read back as it was written: try again")
    return ArtifactPath(artifact_pb2.ARTIFACT_KIND_SAVED_MODEL, folder)


def folder_of(source: Source) -> Path:
    """Gives the folder of a SavedModel source."""
    assert isinstance(source, saved_model_source.SavedModelSource)
    return source.folder


def _reason(variable: GraphVariable, values: np.ndarray) -> str:
    if values.dtype.name not in _FLOATS:
        return f"holds {values.dtype.name}, not floats"
    if variable.kernel_of:
        return ""
    if any(operation.startswith("Depthwise") for operation in variable.read_by):
        return "depthwise kernels are left as they are: they have few weights, and each one matters"
    return f"no matrix product or convolution takes it, but {', '.join(variable.read_by[:3])}"


def _replace(tensors: dict[str, Any], known: Mapping[str, SavedVariable], values: Mapping[str, np.ndarray]) -> None:
    read = {variable.variable.key for variable in known.values()}
    for name, value in values.items():
        old = known[name].values
        assert value.shape == old.shape
        new = value.astype(old.dtype)
        for key, tensor in tensors.items():
            if key == known[name].variable.key or (key not in read and key != _OBJECTS and _same(tensor, old)):
                tensors[key] = new


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, bytes) or isinstance(second, bytes):
        return bool(first == second)
    one, other = np.asarray(first), np.asarray(second)
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _keep_signature(folder: Path, signature: str) -> None:
    message = saved_model_source.read_proto(folder)
    definitions = saved_model_source.meta_graph(message).signature_def
    others = set(saved_model_source.signatures(saved_model_source.meta_graph(message))) - {signature}
    if others:
        for name in others:
            del definitions[name]
        (folder / "saved_model.pb").write_bytes(message.SerializeToString(deterministic=True))


def _only_graph(origin: Path) -> Any:
    """Leaves out the checkpoint, and the fingerprint, which is one of the checkpoint too."""
    left_out = {str(origin): {"fingerprint.pb", "variables"}}
    return lambda folder, names: left_out.get(str(folder), set()) & set(names)
