"""Magnitude pruning with polynomial decay (Zhu and Gupta 2017, arXiv:1710.01878), by TFMOT.

Every kernel that can be pruned gets a wrapper that zeroes its smallest weights while the model is fine-tuned. The
wrapped model trains the layers of the source itself, so once it is fitted the source is the stripped model: names,
nesting and frozen layers as they were. What is promised is read again from the saved file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import tensorflow_model_optimization as tfmot
import tf_keras

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.modelkit import data, finetune, keras_source, proof, threads
from squeezeflow.modelkit.keras_file import write_keras
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.pruner import outcome
from squeezeflow.pruner.kernels import LayerPlan, plan_layers, positive_zeros
from squeezeflow.pruner.schedule import schedule
from squeezeflow.v1 import artifact_pb2, technique_pb2

# TFMOT counts in float32 how many weights stay; this covers its rounding, so that never one too many does.
ROUNDING = 1e-6


def run(params: technique_pb2.Prune, inputs: StepInputs, report: Report) -> StepOutputs:
    """Prunes a tf_keras model and writes it, stripped, as `model.keras` into the step's folder.

    Errors: INVALID_PARAMETER (sparsities that fall, a loss that cannot be inferred or does not fit), UNSUPPORTED_INPUT
    (not a tf_keras model), UNSUPPORTED_LAYER (nothing to prune), DATA_MISSING (no train samples), DATA_MISMATCH,
    NON_FINITE_OUTPUT, OUTPUT_MISMATCH, INVARIANT_BROKEN, and those of opening a model.
    """
    threads.limit(inputs.threads)
    began = time.perf_counter()
    report(0.0, "loading")
    _require_rising(params)
    source = open_source(inputs.model, inputs.signature)
    _require_tf_keras(source)
    plans = plan_layers(source.keras, params.sparsity)
    bound = data.bind(inputs, source.contract)
    training = finetune.resolve(params.fine_tune, source, bound)
    assert bound is not None  # `resolve` refuses to go on without train samples
    before = outcome.look(source, bound, inputs.workdir, seed=training.seed)
    loaded = time.perf_counter()

    finetune.seed_everything(training)
    wrapped = wrap(source.keras, plans, params, training.steps)
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
    fitted = finetune.fit(wrapped, training, source, bound, report, callbacks=callbacks, span=(0.05, 0.9))
    trained = time.perf_counter()

    report(0.9, "proving")
    fine_tuned = list(keras_source.of_model(wrapped).predict(before.samples).values())
    positive_zeros(plans)
    path = inputs.workdir / "model.keras"
    write_keras(source.keras, path, source.compile_config)
    proved = outcome.prove(path, before=before, fine_tuned=fine_tuned, plans=plans, sparsity=params.sparsity)
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


def wrap(model: tf_keras.Model, plans: Sequence[LayerPlan], params: technique_pb2.Prune, steps: int) -> tf_keras.Model:
    """Gives a model around the same layers, in which those that are to be pruned are wrapped and all others are not.

    Args:
        model: freshly loaded; its weights change with those of the result.
        steps: training steps that there will be; the decay is laid over them.
    """
    chosen = {id(plan.layer) for plan in plans if plan.kernels}
    plan = schedule(steps, params.ramp)
    decay = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=params.initial_sparsity,
        final_sparsity=params.sparsity + ROUNDING,
        begin_step=plan.begin,
        end_step=plan.end,
        power=params.power,
        frequency=plan.frequency,
    )

    def clone(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if isinstance(layer, tf_keras.Model):
            return tf_keras.models.clone_model(layer, clone_function=clone)
        return tfmot.sparsity.keras.prune_low_magnitude(layer, decay) if id(layer) in chosen else layer

    return tf_keras.models.clone_model(model, clone_function=clone)


def _require_rising(params: technique_pb2.Prune) -> None:
    if params.initial_sparsity > params.sparsity:
        message = (
            f"initial_sparsity {params.initial_sparsity:g} is above sparsity {params.sparsity:g}: the share of zeros "
            "grows while the model is pruned, lower initial_sparsity"
        )
        raise SqueezeflowError("INVALID_PARAMETER", message, fields=[("params.initial_sparsity", message)])


def _require_tf_keras(source: Source) -> None:
    if source.keras is not None:
        return
    if source.model is not None:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            "pruning trains tf_keras models, this one is a Keras 3 model and the bridge from Keras 3 is not there yet: "
            "save it with tf_keras (TF_USE_LEGACY_KERAS=1)",
            metadata={"format": source.format},
        )
    raise SqueezeflowError(
        "UNSUPPORTED_INPUT",
        f"pruning trains Keras models, this one is a {source.format} without layers: give the .keras or .h5 file that "
        "it was exported from",
        metadata={"format": source.format},
    )
