"""The frame of a step that changes the kernels of a Keras model, by training or at once: load, change, write, prove."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squeezeflow.core.datasets import BoundData
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.modelkit import bridge, data, finetune, keras_source, proof, threads
from squeezeflow.modelkit.keras_file import write_keras
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.pruner import outcome
from squeezeflow.pruner.candidates import weights_of
from squeezeflow.pruner.method import Method
from squeezeflow.v1 import artifact_pb2, technique_pb2

DOING = {"prune": "pruning", "cluster": "clustering"}


@dataclass(frozen=True)
class Opened:
    """The inputs of a step.

    Attributes:
        source: the model as it was given.
        bound: the job's data, if it has any.
        began: when the step began.
    """

    source: Source
    bound: BoundData | None
    began: float


def open_inputs(inputs: StepInputs, report: Report, *, as_graph: bool) -> Opened:
    """Opens model and data; `as_graph`: a SavedModel stays one. Errors: those of opening a model, DATA_MISMATCH."""
    threads.limit(inputs.threads)
    began = time.perf_counter()
    report(0.0, "loading")
    source = open_source(inputs.model, inputs.signature, as_graph=as_graph)
    return Opened(source, data.bind(inputs, source.contract), began)


def fine_tuned(
    method: Method[Any], request: technique_pb2.FineTune, inputs: StepInputs, opened: Opened, report: Report
) -> StepOutputs:
    """Changes kernels while the model is trained, and writes it, without wrappers, as `model.keras`.

    Errors: INVALID_PARAMETER (a pattern that names no layer, a loss that cannot be inferred or does not fit),
    UNSUPPORTED_INPUT (no model that can be trained), UNSUPPORTED_LAYER (nothing to change), DATA_MISSING (no train
    samples), NON_FINITE_OUTPUT, OUTPUT_MISMATCH, INVARIANT_BROKEN.
    """
    bound = opened.bound
    source = bridge.trainable(opened.source, method.technique, bound)
    plans = method.plan(source.keras)
    training = finetune.resolve(request, source, bound)
    assert bound is not None  # `resolve` refuses to go on without train samples
    before = outcome.look(source, bound, inputs.workdir, seed=training.seed)
    loaded = time.perf_counter()

    finetune.seed_everything(training)
    wrapped = method.wrap(source.keras, plans, training, inputs.workdir)
    fitted = finetune.fit(
        wrapped.model,
        training,
        source,
        bound,
        report,
        callbacks=wrapped.callbacks,
        span=(0.05, 0.9),
        checkpoint=inputs.checkpoint,
        stoppable_after_step=wrapped.done_at,
    )
    trained = time.perf_counter()

    report(0.9, "proving")
    made = list(keras_source.of_model(wrapped.model).predict(before.samples).values())
    wrapped.take_off()
    path = _write(source, inputs.workdir)
    proved = outcome.prove(path, before=before, made=made, method=method, plans=plans)
    proof.add_data(proved.contract, bound)
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path),
        contract=proved.contract,
        metrics=proved.metrics,
        invariants=proved.invariants,
        layers=proved.layers,
        notes=(*source.notes, *bound.notes, *training.notes, *fitted, *proved.notes),
        seconds={"load": loaded - opened.began, "train": trained - loaded, "prove": time.perf_counter() - trained},
        logs=wrapped.logs,
    )


def at_once(method: Method[Any], seed: int, inputs: StepInputs, opened: Opened, report: Report) -> StepOutputs:
    """Changes kernels without training, and writes the model as `model.keras`; data, if any, are for the proof.

    Errors: as `fine_tuned`, without those of fine-tuning.
    """
    bound = opened.bound
    source = bridge.trainable(opened.source, method.technique, bound)
    plans = method.plan(source.keras)
    before = outcome.look(source, bound, inputs.workdir, seed=seed)
    loaded = time.perf_counter()

    report(0.2, DOING[method.technique])
    weights = weights_of(source.keras, plans)
    for name, values in method.changed(plans, seed).items():
        weights[name].assign(values)
    changed = time.perf_counter()

    report(0.6, "proving")
    made = source.predict(before.samples)
    path = _write(source, inputs.workdir)
    proved = outcome.prove(path, before=before, made=list(made.values()), method=method, plans=plans)
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
            outcome.moved(before.outputs, made),
        ),
        seconds={
            "load": loaded - opened.began,
            method.technique: changed - loaded,
            "prove": time.perf_counter() - changed,
        },
    )


def _write(source: Source, workdir: Path) -> Path:
    path = workdir / "model.keras"
    write_keras(source.keras, path, source.compile_config)
    return path
