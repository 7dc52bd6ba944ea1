"""The frame of a step that changes the kernels of a SavedModel at once: read, change, write again, prove.

A SavedModel, whatever wrote it, is a graph here, without layers: the kernels are the variables that matrix products and
convolutions of the signature read, and their names are chosen by patterns as layers' names are.
"""

from __future__ import annotations

import time
from typing import Any

from squeezeflow.core import invariants
from squeezeflow.core.step import Report, StepInputs, StepOutputs
from squeezeflow.modelkit import locating, proof
from squeezeflow.modelkit.source import open_source
from squeezeflow.pruner import outcome, saved_model
from squeezeflow.pruner.keras_step import DOING, Opened
from squeezeflow.pruner.method import Method


def at_once(method: Method[Any], seed: int, inputs: StepInputs, opened: Opened, report: Report) -> StepOutputs:
    """Changes kernels without training, and writes the folder `model`, with all signatures; data are for the proof.

    Errors: INVALID_PARAMETER (a pattern that names no variable), UNSUPPORTED_LAYER (nothing to change, a frozen graph),
    NON_FINITE_OUTPUT, INVARIANT_BROKEN.
    """
    source, bound = opened.source, opened.bound
    plans = method.plan_variables(source)
    samples, origin = proof.draw_samples(source.contract, bound, seed)
    expected = source.predict(samples)
    loaded = time.perf_counter()

    report(0.2, DOING[method.technique])
    values = method.changed(plans, seed)
    written = saved_model.write_with(source, values, inputs.workdir / "model")
    changed = time.perf_counter()

    report(0.6, "proving")
    saved = open_source(written, source.contract.signature, as_graph=True)
    outputs = saved.predict(samples)
    in_memory = saved_model.predict_with(source, values, samples)
    before, found = (
        {variable.name: variable.values for variable in saved_model.variables(model)} for model in (source, saved)
    )
    checked = [
        invariants.finite(outputs),
        invariants.alive(expected, outputs, kernels=found, source_kernels=before),
        *([outcome.equal(in_memory, outputs)] if in_memory else []),
        *method.promises({name: found[name] for name in values}, plans),
    ]
    proved = invariants.require(locating.in_model(checked, saved, locating.Compared(samples, expected, outputs)))
    proof.add_data(saved.contract, bound)
    proof.add_golden_samples(saved.contract, samples, outputs)
    return StepOutputs(
        artifact=written,
        contract=saved.contract,
        metrics=proof.differences(expected, outputs),
        invariants=proved,
        layers=tuple(outcome.layer_outcome(method, plan, found) for plan in plans),
        notes=(
            *source.notes,
            *(bound.notes if bound else ()),
            f"the result and its source were {origin}",
            outcome.sizes(saved_model.folder_of(source), written.path),
            outcome.moved(expected, outputs),
            *saved_model.told(source),
        ),
        seconds={
            "load": loaded - opened.began,
            method.technique: changed - loaded,
            "prove": time.perf_counter() - changed,
        },
    )
