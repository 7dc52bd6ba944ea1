"""Latency of one invocation at batch 1, candidate and baseline in turns in one process.

Turns share whatever else the machine does, so the ratio holds where the milliseconds do not. Only one benchmark runs on
a host at a time; load and threads are told beside the figures, which promise nothing for another machine.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from squeezeflow.core import contracts, figures
from squeezeflow.core.datasets import synthetic_inputs
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.litert.interpreter import Interpreter
from squeezeflow.core.litert.quantization import is_quantized, quantize
from squeezeflow.core.step import Report, StepInputs, StepOutputs
from squeezeflow.core.tflite import Tensor, TfliteFile
from squeezeflow.v1 import contract_pb2, evaluator_pb2, step_pb2

# One a user: the file of another user's could not be opened.
# Taken when the fork server imports this: the temporary folder of a step is no place to meet the others.
LOCK_PATH = Path(tempfile.gettempdir()) / f"squeezeflow-benchmark-{os.getuid()}.lock"
LOCK_SECONDS = 600.0
_LOCK_POLL_SECONDS = 0.5
DEFAULT_RUNS = 100
SAMPLES = 8
_WARM_UP_RUNS = 10
_WARM_UP_SECONDS = 1.0
_REPORT_SECONDS = 0.2


@dataclass(frozen=True)
class Subject:
    """A model to time: what invokes it once on sample number n, and where its samples are from."""

    invoke: Callable[[int], object]
    origin: str


def run(params: evaluator_pb2.BenchmarkRequest, inputs: StepInputs, report: Report) -> StepOutputs:
    """Times a candidate, and a baseline in turns with it where there is one.

    Raises:
        SqueezeflowError: MALFORMED_MODEL, UNSUPPORTED_OP, TIMED_OUT (other benchmarks hold the machine for too long).
    """
    runs, threads = params.runs or DEFAULT_RUNS, params.threads or 1
    began = time.perf_counter()
    with alone(report):
        waited = time.perf_counter() - began
        report(0.0, "loading")
        subjects = [_open(inputs, "model", "contract", threads)]
        if "baseline" in inputs.artifacts:
            subjects.append(_open(inputs, "baseline", "baseline_contract", threads))
        load_before = os.getloadavg()[0]
        times = interleave([subject.invoke for subject in subjects], runs, report)
    candidate, *baseline = times
    metrics = figures.latencies(candidate)
    notes = [
        f"{threads} thread{'s' if threads > 1 else ''}, batch 1, {subjects[0].origin} samples, {os.cpu_count()} cores; "
        f"load average {load_before:.2f} before, {os.getloadavg()[0]:.2f} after"
    ]
    if baseline:
        metrics["latency_ratio"] = figures.latency_ratio(baseline[0], candidate)
        notes.append(_told(figures.latencies(baseline[0])))
    seconds = {"wait": waited, "benchmark": time.perf_counter() - began - waited}
    return StepOutputs(metrics=metrics, notes=tuple(notes), seconds=seconds)


def interleave(invokes: list[Callable[[int], object]], runs: int, report: Report) -> list[np.ndarray]:
    """Gives the milliseconds of every run of each model.

    One run of each makes a round; every second round goes backwards, so that none always runs in another's wake.
    """
    for invoke in invokes:
        _warm_up(invoke)
    times = np.zeros((len(invokes), runs))
    order, told = list(range(len(invokes))), 0.0
    for index in range(runs):
        for model in order:
            began = time.perf_counter_ns()
            invokes[model](index)
            times[model, index] = (time.perf_counter_ns() - began) / 1e6
        order.reverse()
        if time.perf_counter() - told > _REPORT_SECONDS:
            told = time.perf_counter()
            report(index / runs, "timing")
    return list(times)


@contextmanager
def alone(report: Report, *, path: Path = LOCK_PATH, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Holds the host's benchmark lock; waits for it and tells so.

    Raises:
        SqueezeflowError: TIMED_OUT after `seconds`.
    """
    lock = FileLock(path)
    deadline = time.monotonic() + seconds
    while True:
        try:
            lock.acquire(timeout=min(_LOCK_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
            break
        except Timeout:
            report(0.0, "waiting for another benchmark")
            if time.monotonic() >= deadline:
                raise SqueezeflowError(
                    "TIMED_OUT",
                    f"other benchmarks held this machine for {seconds:g} s: try again later",
                    metadata={"lock": path},
                ) from None
    try:
        yield
    finally:
        lock.release()


def _open(inputs: StepInputs, model: str, contract: str, threads: int) -> Subject:
    read = contracts.decode(inputs.artifacts[contract].path)
    path = inputs.artifacts[model].path
    samples, origin = _samples(read)
    runner = Runner(path, read, threads=threads)
    runner.invoke(samples[0])  # says by type what is wrong with a model, which the interpreter below does not
    return Subject(_bare(runner.file, read, samples, threads), origin)


def _bare(
    file: TfliteFile, contract: contract_pb2.Contract, samples: list[dict[str, np.ndarray]], threads: int
) -> Callable[[int], object]:
    """Gives what invokes the interpreter alone: binding, batching and quantizing are no part of a model's latency."""
    interpreter = Interpreter(file.path, threads=threads)
    indices = {tensor.name: file.input_names[tensor.signature_name or tensor.name] for tensor in contract.inputs}
    ready = [
        {index: _in_file_type(sample[name], file.main.tensors[index]) for name, index in indices.items()}
        for sample in samples
    ]
    outputs = list(file.output_names.values())
    return lambda number: interpreter.run(ready[number % len(ready)], outputs, reset=file.stateful)


def _in_file_type(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    if values.dtype == tensor.dtype:
        return values
    return quantize(values, tensor) if is_quantized(tensor) else values.astype(tensor.dtype)


def _samples(contract: contract_pb2.Contract) -> tuple[list[dict[str, np.ndarray]], str]:
    """Gives samples of batch 1 and where they are from: the contract's golden samples, else synthetic ones."""
    golden = [
        {name: contracts.array(value) for name, value in sample.inputs.items()}
        for sample in contract.golden_samples[:SAMPLES]
    ]
    if golden:
        return golden, "golden"
    batch = synthetic_inputs(contract, SAMPLES, 0)
    return [{name: array[row : row + 1] for name, array in batch.items()} for row in range(SAMPLES)], "synthetic"


def _warm_up(invoke: Callable[[int], object]) -> None:
    until = time.perf_counter() + _WARM_UP_SECONDS
    for index in range(_WARM_UP_RUNS):
        invoke(index)
        if time.perf_counter() > until:
            return


def _told(baseline: dict[str, step_pb2.Metric]) -> str:
    p50, p95 = baseline["latency_p50_ms"].value, baseline["latency_p95_ms"].value
    return f"baseline in the same process: p50 {p50:.4g} ms, p95 {p95:.4g} ms"
