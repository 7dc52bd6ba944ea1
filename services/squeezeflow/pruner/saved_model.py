"""A SavedModel written again, with other values in its kernels.

The checkpoint is written anew, under the names that the graph restores: functions, assets, signatures and every other
variable stay what they were, byte by byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import saved_model_source
from squeezeflow.modelkit.saved_kernels import SavedVariable, folder_of, prunable_variables, variables
from squeezeflow.modelkit.source import Arrays, Source
from squeezeflow.pruner import other_signatures
from squeezeflow.v1 import artifact_pb2

__all__ = ["SavedVariable", "folder_of", "predict_with", "prunable_variables", "told", "variables", "write_with"]

_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"


def write_with(source: Source, values: Mapping[str, np.ndarray], folder: Path) -> ArtifactPath:
    """Writes a SavedModel again with other values for some of its variables.

    Args:
        source: a SavedModel.
        values: by names of `variables`; shape and dtype stay. A copy of a variable that the signature does not read, as
            Keras 3 exports them, gets the same values.
        folder: is made.

    The source's notes tell which signatures besides the chosen one could not be called for comparison.
    Errors: INVARIANT_BROKEN where what is read back is not what was to be written, or another signature computes
    something else.
    """
    origin = folder_of(source)
    shutil.copytree(origin, folder, ignore=_only_graph(origin))
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
    source.notes += other_signatures.prove(source, folder, values)
    return ArtifactPath(artifact_pb2.ARTIFACT_KIND_SAVED_MODEL, folder)


def predict_with(source: Source, values: Mapping[str, np.ndarray], samples: Arrays) -> dict[str, np.ndarray] | None:
    """Gives what a loaded SavedModel computes with other values for some of its variables, which it then keeps.

    Which of its variables are meant is found by their values alone, not by the graph: a check of what `write_with` did.
    None where that is not clear: reference variables of TensorFlow 1, variables that are equal.
    """
    assert isinstance(source, saved_model_source.SavedModelSource)
    old = {variable.name: variable.values for variable in variables(source)}
    loaded = [(variable, variable.numpy()) for variable in source.variables]
    matches = {name: [variable for variable, value in loaded if _same(value, old[name])] for name in values}
    if any(len(found) != 1 for found in matches.values()):
        return None
    for name, (variable,) in matches.items():
        variable.assign(values[name])
    return source.predict(samples)


def told(source: Source) -> list[str]:
    """Says what becomes of the signatures that were not chosen."""
    others = other_signatures.names(source)
    listed = f"signature {others[0]} is" if len(others) == 1 else f"signatures {', '.join(others)} are"
    return [f"{listed} kept: variables that were changed are changed for all signatures"] if others else []


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


def _only_graph(origin: Path) -> Any:
    """Leaves out the checkpoint, and the fingerprint, which is one of the checkpoint too."""
    left_out = {str(origin): {"fingerprint.pb", "variables"}}
    return lambda folder, names: left_out.get(str(folder), set()) & set(names)
