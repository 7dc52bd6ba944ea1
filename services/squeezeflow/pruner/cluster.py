"""Weight clustering (Han, Mao and Dally 2015, arXiv:1510.00149), by TFMOT; sparsity-preserving for pruned models.

The weights of every kernel share a few values, its centroids, which are trained. A copy of the model is wrapped and
fitted, since the wrapper takes the kernels out of the layers that it is given; what was trained is then put into the
model itself: names, nesting and frozen layers as they were. What is promised is read again from the saved file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import tf_keras

from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.modelkit import bridge, data, finetune, keras_source, layers, proof, threads
from squeezeflow.modelkit.keras_file import write_keras
from squeezeflow.modelkit.source import open_source
from squeezeflow.pruner import cluster_once, cluster_outcome, outcome
from squeezeflow.pruner.cluster_centroids import METHODS, first_centroids
from squeezeflow.pruner.cluster_plan import ClusterPlan, plan_clusters
from squeezeflow.pruner.cluster_wrapper import Clustered
from squeezeflow.v1 import artifact_pb2, technique_pb2


def run(params: technique_pb2.Cluster, inputs: StepInputs, report: Report) -> StepOutputs:
    """Clusters a model and writes it, without wrappers, into the step's folder: `model.keras`.

    With `one_shot` a SavedModel stays one, and needs no data.

    Errors: INVALID_PARAMETER (a pattern that names no layer, a loss that cannot be inferred or does not fit),
    UNSUPPORTED_INPUT (not a Keras model), UNSUPPORTED_LAYER (nothing to cluster), DATA_MISSING (no train samples),
    DATA_MISMATCH, NON_FINITE_OUTPUT, OUTPUT_MISMATCH, INVARIANT_BROKEN, and those of opening a model.
    """
    threads.limit(inputs.threads)
    began = time.perf_counter()
    report(0.0, "loading")
    opened = open_source(inputs.model, inputs.signature)
    if params.one_shot and opened.model is None:
        return cluster_once.cluster_saved_model(params, inputs, opened, report)
    if params.one_shot:
        return cluster_once.cluster_keras(params, inputs, opened, report)
    bound = data.bind(inputs, opened.contract)
    source = bridge.trainable(opened, "cluster", bound)
    plans = plan_clusters(source.keras, params)
    training = finetune.resolve(params.fine_tune, source, bound)
    assert bound is not None  # `resolve` refuses to go on without train samples
    before = outcome.look(source, bound, inputs.workdir, seed=training.seed)
    loaded = time.perf_counter()

    finetune.seed_everything(training)
    model = Wrapped(source.keras, plans, params, training.seed)
    fitted = finetune.fit(
        model.wrapped, training, source, bound, report, checkpoint=inputs.checkpoint, span=(0.05, 0.9)
    )
    trained = time.perf_counter()

    report(0.9, "proving")
    made = list(keras_source.of_model(model.wrapped).predict(before.samples).values())
    model.put_into(source.keras)
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
        notes=(*source.notes, *bound.notes, *training.notes, *fitted, *proved.notes),
        seconds={"load": loaded - began, "train": trained - loaded, "prove": time.perf_counter() - trained},
    )


class Wrapped:
    """A copy of a model in which the layers that are to be clustered are wrapped, and all others are not.

    Attributes:
        wrapped: what is fitted: the same inputs and outputs as the model.
    """

    def __init__(
        self, model: tf_keras.Model, plans: Sequence[ClusterPlan], params: technique_pb2.Cluster, seed: int
    ) -> None:
        copy = copy_of(model)
        # Before wrapping: it takes kernels out of their layers.
        self._weights = list(copy.weights)
        self._wrappers: list[Clustered] = []
        chosen = {plan.path: plan for plan in plans if plan.kernels}
        found = {id(layer): chosen[path] for path, layer in layers.walk(copy) if path in chosen}

        def clone(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
            if isinstance(layer, tf_keras.Model):
                return tf_keras.models.clone_model(layer, clone_function=clone)
            if id(layer) not in found:
                return layer
            kernels = found[id(layer)].kernels
            method = METHODS[params.initialization]
            wrapper = Clustered(layer, [(kernel, first_centroids(kernel, method, seed)) for kernel in kernels])
            self._wrappers.append(wrapper)
            return wrapper

        self.wrapped = tf_keras.models.clone_model(copy, clone_function=clone)

    def put_into(self, model: tf_keras.Model) -> None:
        """Gives the model that this was made from the weights that were trained, the clustered kernels among them."""
        clustered: dict[int, np.ndarray] = {}
        for wrapper in self._wrappers:
            values = wrapper.clustered_values()
            originals: Mapping[str, object] = wrapper.original_clusterable_weights
            clustered |= {id(originals[name]): values[name] for name in values}
        for weight, trained in zip(model.weights, self._weights, strict=True):
            weight.assign(clustered[id(trained)] if id(trained) in clustered else trained.numpy())


def copy_of(model: tf_keras.Model) -> tf_keras.Model:
    """Gives a model with the same layers, weights and frozen layers, which shares nothing with the first."""
    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for (_, layer), (_, other) in zip(layers.walk(model), layers.walk(copy), strict=True):
        other.trainable = layer.trainable
    return copy
