"""Magnitude pruning with polynomial decay (Zhu and Gupta 2017, arXiv:1710.01878) or at once, by TFMOT.

Every kernel that can be pruned gets a wrapper that zeroes its smallest weights while the model is fine-tuned. The
wrapped model trains the layers of the source itself, so once it is fitted the source is the stripped model: names,
nesting and frozen layers as they were. What is promised is read again from the saved file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras

from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.modelkit import bridge, data, finetune, keras_source, proof, threads
from squeezeflow.modelkit.keras_file import write_keras
from squeezeflow.modelkit.source import open_source
from squeezeflow.pruner import one_shot, outcome, patterns
from squeezeflow.pruner.kernels import LayerPlan, plan_layers, positive_zeros
from squeezeflow.pruner.patterns import Pattern
from squeezeflow.pruner.schedule import Schedule, schedule
from squeezeflow.pruner.summaries import Summaries
from squeezeflow.v1 import artifact_pb2, technique_pb2

# TFMOT counts in float32 how many weights stay; this covers its rounding, so that never one too many does.
ROUNDING = 1e-6


def run(params: technique_pb2.Prune, inputs: StepInputs, report: Report) -> StepOutputs:
    """Prunes a Keras model and writes it, stripped, as `model.keras` into the step's folder.

    With `one_shot` there is no training, and a SavedModel gives a SavedModel.

    Errors: INVALID_PARAMETER (fields that contradict each other, a pattern that names no layer, a loss that cannot be
    inferred or does not fit), UNSUPPORTED_INPUT (no model that can be trained), UNSUPPORTED_LAYER (nothing to prune),
    DATA_MISSING (no train samples), DATA_MISMATCH, NON_FINITE_OUTPUT, OUTPUT_MISMATCH, INVARIANT_BROKEN, and those of
    opening a model.
    """
    patterns.check(params)
    threads.limit(inputs.threads)
    began = time.perf_counter()
    report(0.0, "loading")
    opened = open_source(inputs.model, inputs.signature)
    bound = data.bind(inputs, opened.contract)
    if params.one_shot:
        return one_shot.run(params, inputs, opened, bound, report)
    source = bridge.trainable(opened, "prune", bound)
    plans = plan_layers(source.keras, params)
    training = finetune.resolve(params.fine_tune, source, bound)
    assert bound is not None  # `resolve` refuses to go on without train samples
    before = outcome.look(source, bound, inputs.workdir, seed=training.seed)
    loaded = time.perf_counter()

    finetune.seed_everything(training)
    when = schedule_of(params, training.steps)
    wrapped = wrap(source.keras, plans, params, when)
    logs = inputs.workdir / "logs" if params.summaries else None
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep(), *([Summaries(logs, training.steps)] if logs else [])]
    fitted = finetune.fit(
        wrapped,
        training,
        source,
        bound,
        report,
        callbacks=callbacks,
        span=(0.05, 0.9),
        checkpoint=inputs.checkpoint,
        stoppable_after_step=when.end if params.schedule == technique_pb2.Prune.SCHEDULE_POLYNOMIAL else when.begin,
    )
    trained = time.perf_counter()

    report(0.9, "proving")
    fine_tuned = list(keras_source.of_model(wrapped).predict(before.samples).values())
    positive_zeros(plans)
    path = inputs.workdir / "model.keras"
    write_keras(source.keras, path, source.compile_config)
    proved = outcome.prove(path, before=before, made=fine_tuned, plans=plans)
    proof.add_data(proved.contract, bound)
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path),
        contract=proved.contract,
        metrics=proved.metrics,
        invariants=proved.invariants,
        layers=proved.layers,
        notes=(*source.notes, *bound.notes, *training.notes, *fitted, *proved.notes),
        seconds={"load": loaded - began, "train": trained - loaded, "prove": time.perf_counter() - trained},
        logs=logs,
    )


def schedule_of(params: technique_pb2.Prune, steps: int) -> Schedule:
    """Gives when masks are chosen in a fit of so many steps; m of n is chosen by TFMOT at the first step, for good."""
    if params.HasField("m_by_n"):
        return Schedule(1, 1, 1)
    return schedule(steps, params.ramp if params.schedule == technique_pb2.Prune.SCHEDULE_POLYNOMIAL else 1.0)


def wrap(
    model: tf_keras.Model, plans: Sequence[LayerPlan], params: technique_pb2.Prune, when: Schedule
) -> tf_keras.Model:
    """Gives a model around the same layers, in which those that are to be pruned are wrapped and all others are not.

    Args:
        model: freshly loaded; its weights change with those of the result.
        when: the steps at which masks are chosen.
    """
    chosen = {id(plan.layer): plan.pattern for plan in plans if plan.pattern}
    growth = _growth(params, when)

    def clone(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if isinstance(layer, tf_keras.Model):
            return tf_keras.models.clone_model(layer, clone_function=clone)
        pattern = chosen.get(id(layer))
        if pattern is None:
            return layer
        return tfmot.sparsity.keras.prune_low_magnitude(
            layer,
            growth(pattern),
            block_size=pattern.block,
            block_pooling_type="MAX" if pattern.largest else "AVG",
            sparsity_m_by_n=pattern.m_by_n,
        )

    return tf_keras.models.clone_model(model, clone_function=clone)


def _growth(params: technique_pb2.Prune, when: Schedule) -> Callable[[Pattern], Any]:
    """Gives what makes TFMOT's schedule for a kernel's share of zeros."""

    def constant(pattern: Pattern) -> Any:
        return tfmot.sparsity.keras.ConstantSparsity(
            pattern.sparsity + ROUNDING, begin_step=when.begin, end_step=when.end, frequency=when.frequency
        )

    def polynomial(pattern: Pattern) -> Any:
        return tfmot.sparsity.keras.PolynomialDecay(
            initial_sparsity=params.initial_sparsity,
            final_sparsity=pattern.sparsity + ROUNDING,
            begin_step=when.begin,
            end_step=when.end,
            power=params.power,
            frequency=when.frequency,
        )

    growing = params.schedule == technique_pb2.Prune.SCHEDULE_POLYNOMIAL and not params.HasField("m_by_n")
    return polynomial if growing else constant
