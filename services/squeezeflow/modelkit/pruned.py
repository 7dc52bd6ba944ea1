"""Zeros that a model brings along: what pruning gave has to be found again in whatever is made of the model."""

from __future__ import annotations

import operator

import numpy as np

from squeezeflow.core import invariants
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import layers, naming, support
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import step_pb2


def sparsity_kept(source: Source, file: TfliteFile) -> tuple[step_pb2.Invariant, ...]:
    """Gives the `sparsity` invariant of a file made from a pruned Keras model; none where its kernels hold no zeros."""
    targets = invariants.sparsity_targets(kernels_by_layer(source))
    return (invariants.sparsity(file, targets),) if targets else ()


def kernels_by_layer(source: Source) -> dict[str, np.ndarray]:
    """Gives the kernels that pruning works on by the name of their layer; none for a SavedModel."""
    if source.model is None:
        return {}
    found = [
        (layer.name, np.asarray(operator.attrgetter(attribute)(layer)))
        for _, layer in layers.walk(source.model)
        for attribute in support.PRUNED_KERNELS.get(type(layer).__name__, ())
    ]
    return dict(zip(naming.unique([name for name, _ in found]), [kernel for _, kernel in found], strict=True))
