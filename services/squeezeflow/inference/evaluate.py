"""Accuracy, or mean absolute error, of a TFLite file on the test arrays, on the interpreter that will be deployed.

Candidate and baseline run over the same samples in the same process, so drop, flips and increase are paired. Whether
labels are classes or values is told by the data; the first output that has labels is the figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from squeezeflow.core import contracts, figures
from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.step import Report, StepInputs, StepOutputs
from squeezeflow.inference.task import Task, task_of
from squeezeflow.v1 import contract_pb2, evaluator_pb2, step_pb2

SPLIT = "test"
# Samples that are read and judged together; the runner batches them as the file allows.
CHUNK = 256


@dataclass(frozen=True)
class Subject:
    """A model to measure, with the data as it takes it."""

    role: str
    contract: contract_pb2.Contract
    runner: Runner
    data: BoundData


@dataclass(frozen=True)
class Scores:
    """What one model gave on every sample.

    Attributes:
        labels: class ids that it chose; None for values.
        outcome: whether each is right (classes), or how far off each sample is (values).
    """

    labels: np.ndarray | None
    outcome: np.ndarray


def run(params: evaluator_pb2.EvaluateRequest, inputs: StepInputs, report: Report) -> StepOutputs:
    """Measures a candidate, and against a baseline where there is one.

    Raises:
        SqueezeflowError: DATA_MISSING (no test arrays or labels), DATA_MISMATCH, MALFORMED_MODEL, UNSUPPORTED_OP,
            NON_FINITE_OUTPUT.
    """
    began = time.perf_counter()
    report(0.0, "loading")
    dataset = _dataset(inputs)
    candidate = _open(inputs, dataset, "model", "contract", "candidate")
    has_baseline = "baseline" in inputs.artifacts
    baseline = _open(inputs, dataset, "baseline", "baseline_contract", "baseline") if has_baseline else None
    task = task_of(candidate.contract, candidate.data, SPLIT)
    count, notes = _count(candidate.data, params.max_samples)
    loaded = time.perf_counter()

    base_scores = None
    if baseline is not None:
        base_task = task_of(baseline.contract, baseline.data, SPLIT)
        base_task, base_scores = _score(baseline, base_task, count, _Progress(report, 0.0, 0.5, count))
        task = task.follow(base_task)
        notes += [*base_task.notes, f"baseline: {baseline.runner.batch} samples an invocation"]
    start = 0.0 if baseline is None else 0.5
    task, scores = _score(candidate, task, count, _Progress(report, start, 1.0, count))
    notes += [*task.notes, f"candidate: {candidate.runner.batch} samples an invocation"]
    return StepOutputs(
        metrics=_metrics(scores, base_scores),
        notes=tuple(dict.fromkeys([*candidate.data.notes, *notes])),
        seconds={"load": loaded - began, "evaluate": time.perf_counter() - loaded},
    )


def _dataset(inputs: StepInputs) -> Dataset:
    if inputs.data is None:
        raise SqueezeflowError("DATA_MISSING", "there is no dataset: give one with test arrays and labels")
    return Dataset.open(inputs.data.path)


def _open(inputs: StepInputs, dataset: Dataset, model: str, contract: str, role: str) -> Subject:
    read = contracts.decode(inputs.artifacts[contract].path)
    data = dataset.bind(read, scale=inputs.scale, offset=inputs.offset)
    return Subject(role, read, Runner(inputs.artifacts[model].path, read, threads=inputs.threads), data)


def _count(data: BoundData, most: int) -> tuple[int, list[str]]:
    """Gives how many test samples are measured, and a note where it is not all of them."""
    there = data.count(SPLIT)
    notes = [f"test samples have {data.sizes(SPLIT)} sizes"] if data.sizes(SPLIT) > 1 else []
    if most and most < there:
        return most, [*notes, f"the first {most} of {there} test samples were used"]
    return there, notes


@dataclass(frozen=True)
class _Progress:
    """Turns samples done into a fraction of the step, from one fraction to another."""

    report: Report
    start: float
    end: float
    samples: int

    def __call__(self, done: int) -> None:
        self.report(self.start + (self.end - self.start) * done / self.samples, "evaluating")


def _score(subject: Subject, task: Task, count: int, progress: _Progress) -> tuple[Task, Scores]:
    """Runs a model over the first samples; the first outputs may settle what the task is."""
    labels, outcome = [], []
    for rows in _one_sized(subject.data, count):
        values = subject.runner.invoke(subject.data.inputs(SPLIT, rows))[task.output]
        _require_values(values, rows, subject.role, task.output)
        task = task.settle(values)
        chosen, judged = task.judge(values, subject.data.targets(SPLIT, rows)[task.output])
        labels.append(chosen)
        outcome.append(judged)
        progress(rows.stop)
    return task, Scores(np.concatenate(labels) if task.classes else None, np.concatenate(outcome))


def _one_sized(data: BoundData, count: int) -> Iterator[slice]:
    """Gives the first rows in chunks that fit into one batch each: images of one size."""
    for start in range(0, count, CHUNK):
        yield from data.one_sized(SPLIT, start, min(start + CHUNK, count))


def _require_values(values: np.ndarray, rows: slice, role: str, output: str) -> None:
    if values.ndim == 0 or len(values) != rows.stop - rows.start:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"output {output} of the {role} has no batch axis: labels do not fit it, evaluate another output",
            metadata={"output": output, "model": role},
        )
    broken = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if broken.size:
        sample = rows.start + int(broken[0])
        raise SqueezeflowError(
            "NON_FINITE_OUTPUT",
            f"the {role} gives NaN or infinity in output {output} for test sample {sample}: check the model there",
            metadata={"output": output, "sample": sample, "model": role},
        )


def _metrics(candidate: Scores, baseline: Scores | None) -> Mapping[str, step_pb2.Metric]:
    if candidate.labels is None:
        metrics = {"mae": figures.mae(candidate.outcome)}
        if baseline is not None:
            metrics["mae_increase"] = figures.mae_increase(baseline.outcome, candidate.outcome)
        return metrics
    metrics = {"accuracy": figures.accuracy(candidate.outcome)}
    if baseline is not None and baseline.labels is not None:
        metrics["accuracy_drop"] = figures.accuracy_drop(baseline.outcome, candidate.outcome)
        metrics["label_flips"] = figures.label_flips(baseline.labels, candidate.labels)
    return metrics
