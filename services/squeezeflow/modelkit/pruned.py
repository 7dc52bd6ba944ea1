"""Zeros that a model brings along: what pruning gave has to be found again in whatever is made of the model."""

from __future__ import annotations

import numpy as np

from squeezeflow.core import invariants
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import layer_kernels, naming, support
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import step_pb2


def sparsity_kept(source: Source, file: TfliteFile) -> tuple[step_pb2.Invariant, ...]:
    """Gives the `sparsity` invariant of a file made from a pruned model; none where its kernels hold no zeros."""
    targets = invariants.sparsity_targets(kernels_by_layer(source))
    return (invariants.sparsity(file, targets),) if targets else ()


def kernels_by_layer(source: Source) -> dict[str, np.ndarray]:
    """Gives the kernels that pruning works on by the name of their layer; of a SavedModel, by that of the variable.

    A kernel of a SavedModel that is used other than by a plain product or convolution may have any form in a file that
    is made of it, and is not among them.
    """
    if source.model is None:
        from squeezeflow.modelkit import saved_kernels

        plain = [kernel for kernel in saved_kernels.variables(source) if kernel.variable.input_axis is not None]
        return {kernel.name: kernel.values for kernel in plain if not kernel.reason}
    found = [
        (part.short_path, np.asarray(kernel.weight))
        for part in layer_kernels.parts(source.model)
        for kernel in part.kernels(support.PRUNED_KERNELS)
    ]
    return dict(zip(naming.unique([name for name, _ in found]), [kernel for _, kernel in found], strict=True))
