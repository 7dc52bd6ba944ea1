"""One step: kernels of a model are changed, in training or at once, whatever the model's format."""

from __future__ import annotations

from typing import Any

from squeezeflow.core.step import Report, StepInputs, StepOutputs
from squeezeflow.pruner import keras_step, saved_model_step
from squeezeflow.pruner.method import Method


def run(method: Method[Any], inputs: StepInputs, report: Report) -> StepOutputs:
    """Changes a model and writes it in the step's folder: `model.keras`, or the folder `model` of a SavedModel.

    Errors: those of opening a model, and of `keras_step` and `saved_model_step`.
    """
    params = method.params
    opened = keras_step.open_inputs(inputs, report, as_graph=params.one_shot)
    if not params.one_shot:
        return keras_step.fine_tuned(method, params.fine_tune, inputs, opened, report)
    at_once = saved_model_step.at_once if opened.source.model is None else keras_step.at_once
    return at_once(method, params.fine_tune.seed, inputs, opened, report)
