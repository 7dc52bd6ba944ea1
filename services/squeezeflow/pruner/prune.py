"""Magnitude pruning with polynomial decay (Zhu and Gupta 2017, arXiv:1710.01878) or at once, by TFMOT.

Every kernel that can be pruned gets a wrapper that zeroes its smallest weights while the model is fine-tuned. The
wrapped model trains the layers of the source itself, so once it is fitted the source is the stripped model: names,
nesting and frozen layers as they were. What is promised is read again from the saved file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras

from squeezeflow.core.step import Report, StepInputs, StepOutputs
from squeezeflow.modelkit.finetune import Training
from squeezeflow.modelkit.layer_kernels import parts
from squeezeflow.modelkit.source import Source
from squeezeflow.pruner import kernels, patterns, step
from squeezeflow.pruner.kernels import LayerPlan
from squeezeflow.pruner.method import Arrays, Wrapped
from squeezeflow.pruner.patterns import Pattern
from squeezeflow.pruner.prune_wrapper import MaskedKernel, Pruned
from squeezeflow.pruner.schedule import Schedule, schedule
from squeezeflow.pruner.summaries import Summaries
from squeezeflow.v1 import step_pb2, technique_pb2

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
    return step.run(Pruning(params), inputs, report)


@dataclass(frozen=True)
class Pruning:
    """Pruning as one request asks for it."""

    params: technique_pb2.Prune
    technique = "prune"

    def plan(self, model: tf_keras.Model) -> list[LayerPlan]:
        """Decides for every layer."""
        return kernels.plan_layers(model, self.params)

    def plan_variables(self, source: Source) -> list[LayerPlan]:
        """Decides for every variable of a SavedModel."""
        return kernels.plan_variables(source, self.params)

    def changed(self, plans: Sequence[LayerPlan], seed: int) -> dict[str, np.ndarray]:
        """Gives the kernels pruned at once."""
        return kernels.pruned_values(plans)

    def wrap(self, model: tf_keras.Model, plans: Sequence[LayerPlan], training: Training, workdir: Path) -> Wrapped:
        """Wraps the layers themselves: once they are fitted, the model that they are of is the stripped one."""
        when = schedule_of(self.params, training.steps)
        logs = workdir / "logs" if self.params.summaries else None
        return Wrapped(
            wrap(model, plans, self.params, when),
            partial(kernels.positive_zeros, plans),
            [tfmot.sparsity.keras.UpdatePruningStep(), *([Summaries(logs, training.steps)] if logs else [])],
            when.end if self.params.schedule == technique_pb2.Prune.SCHEDULE_POLYNOMIAL else when.begin,
            logs,
        )

    def promises(self, found: Arrays, plans: Sequence[LayerPlan]) -> list[step_pb2.Invariant]:
        """Gives the invariant `sparsity`."""
        return [patterns.promise(found, kernels.kernel_patterns(plans))]

    def reached(self, plan: LayerPlan, found: Arrays) -> str:
        """Says how sparse the kernels of a layer are."""
        assert plan.pattern is not None
        values = np.concatenate([found[kernel.name].reshape(-1) for kernel in plan.kernels])
        return f"sparsity {np.mean(values == 0):.3f}{plan.pattern.describe()}"


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
    growth = _growth(params, when)
    outer = {part.path: part.outer for part in parts(model)}
    chosen: dict[int, list[MaskedKernel]] = {}
    for plan in plans:
        if plan.pattern:
            masked = [MaskedKernel(kernel.weight, plan.pattern, growth(plan.pattern)) for kernel in plan.kernels]
            chosen.setdefault(id(outer[plan.path]), []).extend(masked)

    def clone(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if isinstance(layer, tf_keras.Model):
            return tf_keras.models.clone_model(layer, clone_function=clone)
        return Pruned(layer, chosen[id(layer)]) if id(layer) in chosen else layer

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
