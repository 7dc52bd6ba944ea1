from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from tests.tflite_models import tflite_models

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath, StepInputs
from squeezeflow.inference import benchmark
from squeezeflow.v1 import artifact_pb2, contract_pb2, evaluator_pb2


def quiet(fraction: float, stage: str, **details: Any) -> None:
    assert 0 <= fraction <= 1


def step_inputs(folder: Path, model: str, baseline: str = "", golden: bool = False) -> StepInputs:
    artifacts = {}
    for role, contract, name in (("model", "contract", model), ("baseline", "baseline_contract", baseline)):
        if name:
            path = tflite_models() / name
            read = contracts.foreign(path)
            if golden:
                value = contracts.tensor_value(np.full((1, 28, 28, 1), 0.5, "float32"))
                read.golden_samples.append(contract_pb2.GoldenSample(inputs={"image": value}))
            (folder / contract).write_bytes(contracts.encode(read))
            artifacts[role] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, path)
            artifacts[contract] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_CONTRACT, folder / contract)
    return StepInputs(artifacts, folder)


def test_a_benchmark_gives_latencies_and_the_ratio_and_tells_what_they_stand_on(tmp_path: Path) -> None:
    inputs = step_inputs(tmp_path, "cnn_int8_io.tflite", "cnn.tflite")
    outputs = benchmark.run(evaluator_pb2.BenchmarkRequest(runs=40), inputs, quiet)
    assert set(outputs.metrics) == {"latency_p50_ms", "latency_p95_ms", "latency_ratio"}
    assert all(metric.value > 0 and metric.samples == 40 for metric in outputs.metrics.values())
    assert outputs.metrics["latency_p50_ms"].value <= outputs.metrics["latency_p95_ms"].value
    conditions, baseline = outputs.notes
    assert "1 thread, batch 1, synthetic samples" in conditions
    assert "load average" in conditions
    assert "baseline in the same process: p50" in baseline


def test_a_model_against_itself_is_neither_faster_nor_slower(tmp_path: Path) -> None:
    inputs = step_inputs(tmp_path, "cnn.tflite", "cnn.tflite")
    outputs = benchmark.run(evaluator_pb2.BenchmarkRequest(runs=400), inputs, quiet)
    assert outputs.metrics["latency_ratio"].value == pytest.approx(1.0, rel=0.25)


def test_without_a_baseline_there_is_no_ratio_and_golden_samples_are_used(tmp_path: Path) -> None:
    inputs = step_inputs(tmp_path, "cnn.tflite", golden=True)
    outputs = benchmark.run(evaluator_pb2.BenchmarkRequest(runs=10, threads=2), inputs, quiet)
    assert set(outputs.metrics) == {"latency_p50_ms", "latency_p95_ms"}
    assert "2 threads, batch 1, golden samples" in outputs.notes[0]


def test_runs_alternate_and_every_second_round_goes_backwards() -> None:
    calls: list[str] = []
    invokes = [lambda _, name=name: calls.append(name) for name in "ab"]
    first, second = benchmark.interleave(invokes, 10, quiet)
    assert "".join(calls[-20:]) == "abba" * 5
    assert (len(first), len(second)) == (10, 10)


def test_a_second_benchmark_waits_for_the_first_and_tells_so(tmp_path: Path) -> None:
    path, told = tmp_path / "lock", []
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(path):
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)

    def report(fraction: float, stage: str, **details: Any) -> None:
        told.append(stage)
        release.set()

    with benchmark.alone(report, path=path, seconds=60):
        assert told == ["waiting for another benchmark"]
    holder.join()


def test_a_machine_that_stays_taken_is_timed_out(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / "lock"),
        pytest.raises(SqueezeflowError) as caught,
        benchmark.alone(quiet, path=tmp_path / "lock", seconds=0.1),
    ):
        pytest.fail("two benchmarks at once")
    assert caught.value.reason == "TIMED_OUT"
