"""Clustering at once: every weight goes to the centroid of its cluster by k-means, without data or training."""

from __future__ import annotations

import operator
import time

import tf_keras

from squeezeflow.core import invariants
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.modelkit import bridge, data, layers, proof, selection
from squeezeflow.modelkit.keras_file import write_keras
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.pruner import cluster_outcome, outcome, saved_model
from squeezeflow.pruner.cluster_centroids import METHODS, share_values
from squeezeflow.pruner.cluster_plan import (
    ClusterPlan,
    KernelPlan,
    plan_clusters,
    plan_kernels,
    require_matches,
    require_some,
)
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
    made = source.predict(before.samples)
    path = inputs.workdir / "model.keras"
    write_keras(source.keras, path, source.compile_config)
    proved = cluster_outcome.prove(path, before=before, made=list(made.values()), plans=plans)
    proof.add_data(proved.contract, bound)
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path),
        contract=proved.contract,
        metrics=proof.differences(before.outputs, made),
        invariants=proved.invariants,
        layers=proved.layers,
        notes=(
            *source.notes,
            *(bound.notes if bound else ()),
            *proved.notes,
            cluster_outcome.moved(before.outputs, made),
        ),
        seconds={"load": loaded - began, "cluster": clustered - loaded, "prove": time.perf_counter() - clustered},
    )


def cluster_saved_model(
    params: technique_pb2.Cluster, inputs: StepInputs, source: Source, report: Report
) -> StepOutputs:
    """Clusters the kernels of a SavedModel at once and writes it as the folder `model`, with one signature.

    Layers are variables here, named as the graph names them: `dense/kernel`.
    Errors: INVALID_PARAMETER (a pattern that names no variable), UNSUPPORTED_LAYER (no kernels, or nothing to cluster),
    DATA_MISMATCH, NON_FINITE_OUTPUT, INVARIANT_BROKEN.
    """
    began = time.perf_counter()
    bound = data.bind(inputs, source.contract)
    plans = plan_variables(source, params)
    samples, origin = proof.draw_samples(source.contract, bound, params.fine_tune.seed)
    expected = source.predict(samples)
    loaded = time.perf_counter()

    report(0.2, "clustering")
    tf_keras.utils.set_random_seed(params.fine_tune.seed)
    method = METHODS[params.initialization]
    kernels = [kernel for plan in plans for kernel in plan.kernels]
    values = {kernel.name: share_values(kernel, method, params.fine_tune.seed) for kernel in kernels}
    written = saved_model.write_with(source, values, inputs.workdir / "model")
    clustered = time.perf_counter()

    report(0.6, "proving")
    saved = open_source(written, source.contract.signature)
    outputs = saved.predict(samples)
    in_memory = saved_model.predict_with(source, values, samples)
    found = saved_model.prunable_variables(saved)
    proved = invariants.require(
        [
            invariants.finite(outputs),
            invariants.alive(expected, outputs, kernels=found, source_kernels=saved_model.prunable_variables(source)),
            *([outcome.equal(in_memory, outputs)] if in_memory else []),
            *cluster_outcome.promises(found, kernels),
        ]
    )
    proof.add_data(saved.contract, bound)
    proof.add_golden_samples(saved.contract, samples, outputs)
    sizes = outcome.sizes(saved_model.folder_of(source), written.path)
    return StepOutputs(
        artifact=written,
        contract=saved.contract,
        metrics=proof.differences(expected, outputs),
        invariants=proved,
        layers=tuple(cluster_outcome.layer_outcome(plan, found) for plan in plans),
        notes=(
            *source.notes,
            *(bound.notes if bound else ()),
            f"the result and its source were {origin}",
            sizes,
            cluster_outcome.moved(expected, outputs),
            *saved_model.told(source),
        ),
        seconds={"load": loaded - began, "cluster": clustered - loaded, "prove": time.perf_counter() - clustered},
    )


def plan_variables(source: Source, params: technique_pb2.Cluster) -> list[ClusterPlan]:
    """Decides for every variable with two axes or more that the signature reads.

    Errors: INVALID_PARAMETER, UNSUPPORTED_LAYER.
    """
    saved_model.prunable_variables(source)  # Refuses a graph without kernels.
    variables = saved_model.variables(source)
    require_matches(params, [variable.name for variable in variables])
    plans = []
    for variable in variables:
        operations = variable.variable.kernel_of or variable.variable.read_by
        reason = variable.reason or selection.left_out(params.layers, variable.name)
        kernels: tuple[KernelPlan, ...] = ()
        if not reason:
            found = [(variable.name, "", variable.values)]
            by_channel = operations == ("Conv2D",) and variable.values.ndim == 4
            kernels, reason = plan_kernels(variable.name, found, params, by_channel=by_channel)
        plans.append(ClusterPlan(variable.name, ", ".join(operations[:3]), None, kernels, reason))
    require_some(plans)
    return plans
