"""Clusters that a model brings along: what clustering gave has to be found again in whatever is made of the model."""

from __future__ import annotations

import numpy as np

from squeezeflow.core import invariants
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import layer_kernels, naming
from squeezeflow.modelkit.clusterable import CLUSTERED_KERNELS
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import step_pb2


def clusters_kept(source: Source, file: TfliteFile) -> tuple[step_pb2.Invariant, ...]:
    """Gives the `clusters` invariant of a file made from a clustered Keras model; none where no kernel is clustered."""
    targets = cluster_targets(source)
    return (invariants.clusters(file, targets),) if targets else ()


def cluster_targets(source: Source) -> tuple[invariants.ClusterTarget, ...]:
    """Gives the kernels of a Keras model that are clustered, by the name of their layer; none for a SavedModel."""
    if source.model is None:
        return ()
    found = [
        (part.short_path, np.asarray(kernel.weight))
        for part in layer_kernels.parts(source.model)
        for kernel in part.kernels(CLUSTERED_KERNELS)
    ]
    names = naming.unique([name for name, _ in found])
    return invariants.cluster_targets(dict(zip(names, (kernel for _, kernel in found), strict=True)))
