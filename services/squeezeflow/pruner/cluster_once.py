"""Clustering at once: every weight goes to the centroid of its cluster by k-means, without data and without training."""

from __future__ import annotations

import operator
import time

import tf_keras

from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.modelkit import bridge, data, layers, proof
from squeezeflow.modelkit.keras_file import write_keras
from squeezeflow.modelkit.source import Source
from squeezeflow.pruner import cluster_outcome, outcome
from squeezeflow.pruner.cluster_centroids import METHODS, share_values
from squeezeflow.pruner.cluster_plan import plan_clusters
from squeezeflow.v1 import artifact_pb2, technique_pb2


def cluster_keras(params: technique_pb2.Cluster, inputs: StepInputs, opened: Source, report: Report) -> StepOutputs:
    """Clusters a Keras model at once and writes it as `model.keras`; data, where there are any, are for the proof.

    Errors: as `cluster.run`, without those of fine-tuning.
    """
    began = time.perf_counter()
    bound = data.bind(inputs, opened.contract)
    source = bridge.trainable(opened, "cluster", bound)
    plans = plan_clusters(source.keras, params)
    seed = params.fine_tune.seed
    before = outcome.look(source, bound, inputs.workdir, seed=seed)
    loaded = time.perf_counter()

    report(0.2, "clustering")
    tf_keras.utils.set_random_seed(seed)
    found = dict(layers.walk(source.keras))
    for plan in plans:
        for kernel in plan.kernels:
            weight = operator.attrgetter(kernel.attribute)(found[plan.path])
            weight.assign(share_values(kernel, METHODS[params.initialization], seed))
    clustered = time.perf_counter()

    report(0.6, "proving")
    made = list(source.predict(before.samples).values())
    path = inputs.workdir / "model.keras"
    write_keras(source.keras, path, source.compile_config)
    proved = cluster_outcome.prove(path, before=before, made=made, plans=plans)
    proof.add_data(proved.contract, bound)
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path),
        contract=proved.contract,
        metrics=proved.metrics,
        invariants=proved.invariants,
        layers=proved.layers,
        notes=(*source.notes, *(bound.notes if bound else ()), *proved.notes, cluster_outcome.change(before, made)),
        seconds={"load": loaded - began, "cluster": clustered - loaded, "prove": time.perf_counter() - clustered},
    )
