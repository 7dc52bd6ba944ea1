"""The kernels of a SavedModel with their values, and why its other variables are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import saved_model_source
from squeezeflow.modelkit.graph_kernels import GraphVariable, variables_of
from squeezeflow.modelkit.source import Source

_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})


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
