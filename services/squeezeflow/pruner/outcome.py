"""What a change of kernels left in the saved file: zeros, values, outputs and sizes, read again from its bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from squeezeflow.core import figures, invariants
from squeezeflow.core.datasets import BoundData
from squeezeflow.core.sizes import sizes_of
from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import locating, proof
from squeezeflow.modelkit.keras_file import write_keras
from squeezeflow.modelkit.layer_kernels import DONE
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.pruner.candidates import weights_of
from squeezeflow.pruner.method import Method
from squeezeflow.v1 import artifact_pb2, contract_pb2, step_pb2

Arrays = Mapping[str, np.ndarray]
# The stripped model computes what the wrapped one does; only the order of fused sums may differ.
EQUAL = 1e-5


@dataclass(frozen=True)
class Before:
    """The model before anything was done to it.

    Attributes:
        samples: inputs for comparisons; `origin` says where they are from.
        outputs: what the model gave for them.
        kernels: its weights by name.
        file: the model as it is written by the same hand: the size to compare with.
    """

    samples: Arrays
    origin: str
    outputs: Arrays
    kernels: Arrays
    file: Path


@dataclass(frozen=True)
class Outcome:
    """What was proved about the saved file; the invariants hold."""

    contract: contract_pb2.Contract
    invariants: tuple[step_pb2.Invariant, ...]
    metrics: Mapping[str, step_pb2.Metric]
    layers: tuple[step_pb2.LayerOutcome, ...]
    notes: tuple[str, ...]


def look(source: Source, bound: BoundData | None, workdir: Path, *, seed: int) -> Before:
    """Takes down what the freshly loaded model is."""
    samples, origin = proof.draw_samples(source.contract, bound, seed)
    file = workdir / "dense.keras"
    write_keras(source.keras, file, source.compile_config)
    return Before(samples, origin, source.predict(samples), source.kernels(), file)


def prove(
    path: Path, *, before: Before, made: Sequence[np.ndarray], method: Method[Any], plans: Sequence[Any]
) -> Outcome:
    """Proves the saved file.

    Args:
        path: the `.keras` file.
        made: what the model in memory gives for the samples, with its wrappers where it has some, in the order of the
            outputs.
        method: says what was promised.
        plans: what was to be changed, and how.

    Errors: NON_FINITE_OUTPUT and INVARIANT_BROKEN naming the layer, OUTPUT_MISMATCH naming the output.
    """
    saved = open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path))
    outputs = saved.predict(before.samples)
    expected = dict(zip(outputs, made, strict=True))
    kernels = {name: weight.numpy() for name, weight in weights_of(saved.keras, plans).items()}
    checked = [
        invariants.finite(outputs),
        invariants.alive(before.outputs, outputs, kernels=saved.kernels(), source_kernels=before.kernels),
        equal(expected, outputs),
        *method.promises(kernels, plans),
    ]
    compared = locating.Compared(before.samples, expected, outputs)
    proved = invariants.require(locating.in_model(checked, saved, compared))
    proof.add_golden_samples(saved.contract, before.samples, outputs)
    difference = max(figures.max_abs_diff(expected[name], outputs[name]) for name in outputs)
    count = len(next(iter(outputs.values())))
    return Outcome(
        saved.contract,
        proved,
        {"max_abs_diff": step_pb2.Metric(value=difference, samples=count)},
        tuple(layer_outcome(method, plan, kernels) for plan in plans),
        (
            f"the saved file and the {DONE[method.technique]} model in memory were {before.origin}",
            sizes(before.file, path),
        ),
    )


def equal(expected: Arrays, outputs: Arrays) -> step_pb2.Invariant:
    """Holds when the saved file computes what the model in memory, with its wrappers, does."""
    passed, parts = True, []
    for name, values in expected.items():
        difference = figures.max_abs_diff(values, outputs[name])
        limit = EQUAL * max(1.0, float(np.abs(values).max(initial=0.0)))
        passed = passed and difference <= limit
        parts.append(f"output {name}: max abs diff {difference:.3g} to the model in memory, limit {limit:.3g}")
    return step_pb2.Invariant(name="close", passed=passed, detail="; ".join(parts))


def layer_outcome(method: Method[Any], plan: Any, kernels: Arrays) -> step_pb2.LayerOutcome:
    """Says what became of a layer."""
    detail = method.reached(plan, kernels) if plan.kernels else plan.reason
    return step_pb2.LayerOutcome(layer=plan.path, class_name=plan.class_name, applied=bool(plan.kernels), detail=detail)


def sizes(before: Path, after: Path) -> str:
    """Tells what changed kernels do to the size of a file or folder: only the deflated one changes."""
    dense, sparse = sizes_of(before), sizes_of(after)
    return (
        f"deflated, the model shrinks from {dense.deflated_bytes} to {sparse.deflated_bytes} bytes "
        f"({dense.deflated_bytes / sparse.deflated_bytes:.2f}x); the raw size ({sparse.raw_bytes} bytes) and the "
        "latency do not change"
    )


def moved(before: Arrays, after: Arrays) -> str:
    """Tells how far a change without training moved the outputs."""
    difference = max(figures.max_abs_diff(values, after[name]) for name, values in before.items())
    ratio = min(figures.sqnr_db(values, after[name]) for name, values in before.items())
    flips = [
        f"{int(np.sum(values.argmax(axis=-1) != after[name].argmax(axis=-1)))} of {values[..., 0].size} labels flipped"
        for name, values in before.items()
        if values.ndim > 1 and values.shape[-1] > 1
    ]
    told = ", ".join([f"at most {difference:.3g} ({ratio:.1f} dB)", *flips])
    return f"without training, the outputs moved by {told}: leave out one_shot to recover by fine-tuning"
