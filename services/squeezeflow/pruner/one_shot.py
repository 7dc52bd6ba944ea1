"""Magnitude pruning at once: the smallest weights become zero, without data and without training.

Takes Keras models, and SavedModels, which have no layers: there the kernels are the variables that matrix products and
convolutions of the signature read, and their names are chosen by patterns as layers' names are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from squeezeflow.core import figures, invariants
from squeezeflow.core.datasets import BoundData
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.modelkit import bridge, proof, selection
from squeezeflow.modelkit.keras_file import write_keras
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.pruner import kernels, outcome, patterns, saved_model
from squeezeflow.pruner.outcome import Arrays
from squeezeflow.pruner.patterns import Pattern
from squeezeflow.v1 import artifact_pb2, step_pb2, technique_pb2


def run(
    params: technique_pb2.Prune, inputs: StepInputs, source: Source, bound: BoundData | None, report: Report
) -> StepOutputs:
    """Prunes an opened model and writes it in the format that it came in.

    Args:
        params: `schedule`, `initial_sparsity`, `power`, `ramp` and most of `fine_tune` are not used; its seed draws the
            samples for the proof.
        bound: the job's data, if it has any: for the proof.

    Errors: INVALID_PARAMETER (a pattern that names no layer), UNSUPPORTED_LAYER (nothing to prune, a frozen graph),
    NON_FINITE_OUTPUT, INVARIANT_BROKEN.
    """
    if source.model is None:
        return _prune_saved_model(params, inputs, source, bound, report)
    return _prune_keras(params, inputs, bridge.trainable(source, "prune", bound), bound, report)


def _prune_keras(
    params: technique_pb2.Prune, inputs: StepInputs, source: Source, bound: BoundData | None, report: Report
) -> StepOutputs:
    began = time.perf_counter()
    plans = kernels.plan_layers(source.keras, params)
    before = outcome.look(source, bound, inputs.workdir, seed=params.fine_tune.seed)
    report(0.3, "pruning")
    kernels.prune_at_once(plans)
    made = source.predict(before.samples)
    path = inputs.workdir / "model.keras"
    write_keras(source.keras, path, source.compile_config)
    pruned = time.perf_counter()
    report(0.6, "proving")
    proved = outcome.prove(path, before=before, made=list(made.values()), plans=plans)
    proof.add_data(proved.contract, bound)
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path),
        contract=proved.contract,
        metrics=proof.differences(before.outputs, made),
        invariants=proved.invariants,
        layers=proved.layers,
        notes=(*source.notes, *(bound.notes if bound else ()), *proved.notes, moved(before.outputs, made)),
        seconds={"prune": pruned - began, "prove": time.perf_counter() - pruned},
    )


@dataclass(frozen=True)
class VariablePlan:
    """What happens to one variable of a SavedModel.

    Attributes:
        variable: with its values.
        reason: why it is not pruned; empty where it is.
        pattern: how; None where it is not.
    """

    variable: saved_model.SavedVariable
    reason: str = ""
    pattern: Pattern | None = None


def plan_variables(source: Source, params: technique_pb2.Prune) -> list[VariablePlan]:
    """Decides for every variable with two axes or more that the signature of a SavedModel reads.

    Errors: INVALID_PARAMETER for a pattern that names no variable, UNSUPPORTED_LAYER where nothing is left to prune.
    """
    saved_model.prunable_variables(source)  # refuses a graph without kernels
    found = saved_model.variables(source)
    kernels.require_matches(params, [variable.name for variable in found])
    plans = [_plan(variable, params) for variable in found]
    if not any(plan.pattern for plan in plans):
        kernels.refuse_all({plan.variable.name: plan.reason for plan in plans}, "variable")
    return plans


def _plan(variable: saved_model.SavedVariable, params: technique_pb2.Prune) -> VariablePlan:
    axis = variable.variable.input_axis
    pattern = patterns.pattern_of(params, kernels.sparsity_of(params, variable.name), -2 if axis is None else axis)
    reason = variable.reason or selection.left_out(params.layers, variable.name)
    if not reason and pattern.m_by_n and axis is None:
        reason = f"m of n: {', '.join(variable.variable.kernel_of)} does not sum over one axis of it"
    reason = reason or patterns.left_out(pattern, [variable.values.shape])
    return VariablePlan(variable, reason) if reason else VariablePlan(variable, pattern=pattern)


def _prune_saved_model(
    params: technique_pb2.Prune, inputs: StepInputs, source: Source, bound: BoundData | None, report: Report
) -> StepOutputs:
    began = time.perf_counter()
    plans = plan_variables(source, params)
    samples, origin = proof.draw_samples(source.contract, bound, params.fine_tune.seed)
    expected = source.predict(samples)
    report(0.3, "pruning")
    chosen = {plan.variable.name: plan.pattern for plan in plans if plan.pattern}
    values = {plan.variable.name: plan.variable.values for plan in plans}
    pruned = {name: patterns.prune(values[name], pattern) for name, pattern in chosen.items()}
    written = saved_model.write_with(source, pruned, inputs.workdir / "model")
    done = time.perf_counter()
    report(0.6, "proving")
    again = open_source(written)
    outputs = again.predict(samples)
    in_memory = saved_model.predict_with(source, pruned, samples)
    found = {variable.name: variable.values for variable in saved_model.variables(again)}
    proved = invariants.require(
        [
            invariants.finite(outputs),
            invariants.alive(expected, outputs, kernels=found, source_kernels=values),
            *([outcome.equal(in_memory, outputs)] if in_memory else []),
            patterns.promise({name: found[name] for name in chosen}, chosen),
        ]
    )
    proof.add_data(again.contract, bound)
    proof.add_golden_samples(again.contract, samples, outputs)
    return StepOutputs(
        artifact=written,
        contract=again.contract,
        metrics=proof.differences(expected, outputs),
        invariants=proved,
        layers=tuple(_outcome(plan, found) for plan in plans),
        notes=(
            *source.notes,
            *(bound.notes if bound else ()),
            f"the result and its source were {origin}",
            outcome.sizes(saved_model.folder_of(source), written.path),
            moved(expected, outputs),
            *saved_model.told(source),
        ),
        seconds={"prune": done - began, "prove": time.perf_counter() - done},
    )


def _outcome(plan: VariablePlan, found: Arrays) -> step_pb2.LayerOutcome:
    variable = plan.variable
    detail = outcome.reached([found[variable.name]], plan.pattern) if plan.pattern else plan.reason
    operations = ", ".join(variable.variable.kernel_of or variable.variable.read_by)
    return step_pb2.LayerOutcome(
        layer=variable.name, class_name=operations, applied=plan.pattern is not None, detail=detail
    )


def moved(before: Arrays, after: Arrays) -> str:
    """Tells how far pruning without training moved the outputs."""
    difference = max(figures.max_abs_diff(values, after[name]) for name, values in before.items())
    ratio = min(figures.sqnr_db(values, after[name]) for name, values in before.items())
    flips = [
        f"{int(np.sum(values.argmax(axis=-1) != after[name].argmax(axis=-1)))} of {values[..., 0].size} labels flipped"
        for name, values in before.items()
        if values.ndim > 1 and values.shape[-1] > 1
    ]
    told = ", ".join([f"at most {difference:.3g} ({ratio:.1f} dB)", *flips])
    return f"without training, the outputs moved by {told}: prune with training data to recover"
