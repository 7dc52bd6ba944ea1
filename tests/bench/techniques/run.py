"""`make bench-techniques`: every technique and recipe against the float32 baseline, over three seeds, on real data.

Trains a small CNN on Fashion-MNIST, a Conv2D net and an LSTM on Japanese Vowels, compresses each by every recipe
through the services, and writes what came out, met or not, beside what was published: `build/techniques.json` and
`build/techniques.md`. `--readme` puts the tables into the README.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
from tests.bench.techniques import report
from tests.bench.techniques.recipes import all_recipes
from tests.servers.stack import Stack

from squeezeflow.client import Client
from squeezeflow.core import contracts
from squeezeflow.core.invariants.clusters import distinct
from squeezeflow.core.litert.runner import Runner
from squeezeflow.core.tflite import TfliteFile, Weight
from squeezeflow.rpc.channels import open_sync_channel
from squeezeflow.v1 import evaluator_pb2, evaluator_pb2_grpc, jobs_pb2, step_pb2, technique_pb2

ROOT = Path(__file__).resolve().parents[3]
# Fine-tuning epochs by model: the Vowels have 17 batches an epoch.
EPOCHS = {"fashion": 8, "vowels-conv": 40, "vowels-lstm": 40}
SCALE = {"fashion": [1 / 255]}
# Held against each other on the same test samples: the first should not be worse than the second by over half a point.
PAIRS = (("pqat", "prune-int8"), ("cqat", "cluster-int8"), ("pcqat", "prune-cluster-int8"))
# Smaller weights are left out of the shares of zeros and numbers of values: biases, scales, tables.
LEAST_WEIGHTS = 64


def train(name: str, seed: int, folder: Path) -> None:
    """Trains one model in a process of its own."""
    folder.mkdir(parents=True)
    script = Path(__file__).with_name("train.py")
    subprocess.run([sys.executable, script, name, str(seed), folder], check=True, capture_output=True)


def job_of(client: Client, name: str, seed: int, folder: Path) -> jobs_pb2.Job:
    """Runs all recipes in one job and gives it when it has ended."""
    model, data = client.upload(folder / "model.keras").digest, client.upload(folder / "data.npz").digest
    recipes = all_recipes()
    for recipe in recipes:
        for technique in recipe.techniques:
            if technique.WhichOneof("technique") == "quantize":
                technique.quantize.seed = seed
    spec = jobs_pb2.JobSpec(
        model=step_pb2.ModelInput(artifact=model),
        data=step_pb2.DataInput(artifact=data, scale=SCALE.get(name, [])),
        recipes=recipes,
        fine_tune=technique_pb2.FineTune(epochs=EPOCHS[name], seed=seed),
    )
    job = client.create_job(spec)
    for update in client.watch_job(job.id):
        job = update
    return job


def row_of(client: Client, candidate: jobs_pb2.Candidate, folder: Path) -> dict[str, Any]:
    """Gives the figures of one candidate; zeros and values are counted in its file."""
    if candidate.state != jobs_pb2.JOB_STATE_SUCCEEDED:
        return {"error": f"{candidate.error.reason}: {candidate.error.message}"}
    path = client.download(candidate.artifact, folder / f"{candidate.recipe}.tflite", replace=True)
    weights = [weight for weight in TfliteFile.read(path).weights if weight.tensor.size >= LEAST_WEIGHTS]
    sizes = sum(weight.tensor.size for weight in weights)
    metrics = {name: metric.value for name, metric in candidate.metrics.items()}
    return {
        "raw": candidate.sizes.raw_bytes,
        "deflated": candidate.sizes.deflated_bytes,
        "zeros": sum(weight.zeros for weight in weights) / sizes if sizes else 0.0,
        "values": max((_values_of_a_channel(weight) for weight in weights), default=0),
        "seconds": sum(step.seconds for step in candidate.steps if step.technique not in ("evaluate", "benchmark")),
        **metrics,
        "drop_high": candidate.metrics["accuracy_drop"].high if "accuracy_drop" in candidate.metrics else 0.0,
    }


def _values_of_a_channel(weight: Weight) -> int:
    """Gives the largest number of distinct values in one output channel; 0 where the file does not tell."""
    return 0 if weight.values is None or weight.channel_axis is None else distinct(weight.values, weight.channel_axis)


def paired(client: Client, stub: Any, job: jobs_pb2.Job, folder: Path, first: str, second: str) -> dict[str, Any]:
    """Gives how much less accurate the first candidate is than the second, and on which test samples they differ."""
    found = {c.recipe: c for c in job.candidates if c.state == jobs_pb2.JOB_STATE_SUCCEEDED}
    if first not in found or second not in found:
        return {}
    model, baseline = (
        evaluator_pb2.Servable(artifact=found[name].artifact, contract=found[name].contract) for name in (first, second)
    )
    request = evaluator_pb2.EvaluateRequest(model=model, baseline=baseline, data=job.spec.data)
    metric = next(
        event.result.metrics["accuracy_drop"]
        for event in stub.Evaluate(request, timeout=600)
        if event.WhichOneof("event") == "result"
    )
    mine, other = (correct(client, folder, found[name], job.spec.data.scale) for name in (first, second))
    drop = float(other.mean() - mine.mean())
    if abs(drop - metric.value) > 1e-9:
        raise RuntimeError(f"{first} against {second}: Evaluate gives {metric.value}, the files themselves {drop}")
    return {
        "drop": metric.value,
        "high": metric.high,
        "samples": len(mine),
        "only_first": np.flatnonzero(mine & ~other).tolist(),
        "only_second": np.flatnonzero(other & ~mine).tolist(),
    }


def correct(client: Client, folder: Path, candidate: jobs_pb2.Candidate, scale: Sequence[float]) -> np.ndarray:
    """Gives by test sample whether a candidate is right; its file was downloaded before."""
    contract = contracts.decode(client.download(candidate.contract, folder / "contract", replace=True))
    with np.load(folder / "data.npz") as arrays:
        x, y = arrays["x_test"].astype(np.float32), arrays["y_test"]
    if scale:
        x = x * np.float32(scale[0])
    given = contract.inputs[0]
    runner = Runner(folder / f"{candidate.recipe}.tflite", contract)
    outputs = runner.invoke({given.name: x.reshape(len(x), *given.shape[1:])})
    return next(iter(outputs.values())).argmax(axis=1) == y


def measure(models: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Runs everything on a stack of its own; gives figures by model and seed."""
    results: dict[str, Any] = {name: {} for name in models}
    with tempfile.TemporaryDirectory() as text, Stack(Path(text)) as stack:
        client = stack.client()
        stub = evaluator_pb2_grpc.EvaluatorStub(open_sync_channel(stack.endpoints["inference"]))
        for name in models:
            for seed in seeds:
                began, folder = time.monotonic(), Path(text) / f"{name}-{seed}"
                train(name, seed, folder)
                job = job_of(client, name, seed, folder)
                results[name][str(seed)] = {
                    "candidates": {c.recipe: row_of(client, c, folder) for c in job.candidates},
                    "pairs": {f"{a} against {b}": paired(client, stub, job, folder, a, b) for a, b in PAIRS},
                }
                failed = [c.recipe for c in job.candidates if c.state != jobs_pb2.JOB_STATE_SUCCEEDED]
                print(f"{name}, seed {seed}: {time.monotonic() - began:.0f} s, not succeeded: {failed}", flush=True)
                write(results)
    return results


def write(results: dict[str, Any]) -> str:
    """Writes what is there so far, and gives the report."""
    measured = {name: seeds for name, seeds in results.items() if seeds}
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    (build / "techniques.json").write_text(json.dumps(measured, indent=1))
    text = report.markdown(measured)
    (build / "techniques.md").write_text(text)
    return text


def main() -> None:
    """Measures, writes the files and, when asked, the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(EPOCHS), help="only this one; repeatable")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--readme", action="store_true", help="put the tables into the README")
    arguments = parser.parse_args()
    text = write(measure(arguments.model or list(EPOCHS), range(arguments.seeds)))
    print(text)
    if arguments.readme:
        report.into_readme(ROOT / "README.md", text)


if __name__ == "__main__":
    main()
