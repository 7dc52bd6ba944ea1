"""What clustering left in the saved file: distinct values, zeros, outputs and sizes, read again from its bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from squeezeflow.core import figures, invariants
from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import proof
from squeezeflow.modelkit.source import open_source
from squeezeflow.pruner.cluster_plan import ClusterPlan, KernelPlan, clustered_kernels
from squeezeflow.pruner.outcome import Before, Outcome, equal, sizes
from squeezeflow.v1 import artifact_pb2, step_pb2

Arrays = Mapping[str, np.ndarray]


def prove(path: Path, *, before: Before, made: Sequence[np.ndarray], plans: Sequence[ClusterPlan]) -> Outcome:
    """Proves the saved file.

    Args:
        path: the `.keras` file.
        before: the model before anything was done to it.
        made: what the clustered model in memory gives for the samples, in the order of the outputs.
        plans: what was to be clustered.

    Errors: NON_FINITE_OUTPUT, OUTPUT_MISMATCH, INVARIANT_BROKEN naming the layer.
    """
    saved = open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path))
    outputs = saved.predict(before.samples)
    expected = dict(zip(outputs, made, strict=True))
    kernels = clustered_kernels(saved.keras, plans)
    proved = invariants.require(
        [
            invariants.finite(outputs),
            invariants.alive(before.outputs, outputs, kernels=saved.kernels(), source_kernels=before.kernels),
            equal(expected, outputs),
            *promises(kernels, [kernel for plan in plans for kernel in plan.kernels]),
        ]
    )
    proof.add_golden_samples(saved.contract, before.samples, outputs)
    difference = max(figures.max_abs_diff(expected[name], outputs[name]) for name in outputs)
    count = len(next(iter(outputs.values())))
    return Outcome(
        saved.contract,
        proved,
        {"max_abs_diff": step_pb2.Metric(value=difference, samples=count)},
        tuple(layer_outcome(plan, kernels) for plan in plans),
        (f"the saved file and the clustered model in memory were {before.origin}", sizes(before.file, path)),
    )


def promises(kernels: Arrays, plans: Sequence[KernelPlan]) -> list[step_pb2.Invariant]:
    """Gives `clusters` of all kernels, and `sparsity` where zeros are kept."""
    kept = [plan.zeros(kernels[plan.name]) for plan in plans if plan.keep_zeros]
    return [
        invariants.clusters(kernels, [plan.promise(kernels[plan.name]) for plan in plans]),
        *([invariants.sparsity(kernels, kept)] if kept else []),
    ]


def layer_outcome(plan: ClusterPlan, kernels: Arrays) -> step_pb2.LayerOutcome:
    """Says what became of a layer, with the number of values that its kernels have now."""
    parts = [_reached(kernel, kernels[kernel.name]) for kernel in plan.kernels]
    detail = "; ".join([*parts, plan.reason] if plan.reason else parts)
    return step_pb2.LayerOutcome(layer=plan.path, class_name=plan.class_name, applied=bool(plan.kernels), detail=detail)


def _reached(plan: KernelPlan, values: np.ndarray) -> str:
    where, axis = (" a channel", -1) if plan.per_channel else ("", None)
    text = f"{invariants.distinct(values, axis)} of {plan.clusters} values{where}"
    return f"{text}, sparsity {np.mean(values == 0):.3f}" if plan.keep_zeros else text


def moved(before: Arrays, after: Arrays) -> str:
    """Tells how far clustering without training moved the outputs."""
    pairs = [(values, after[name]) for name, values in before.items()]
    difference = max(figures.max_abs_diff(old, new) for old, new in pairs)
    ratio = min(figures.sqnr_db(old, new) for old, new in pairs)
    return f"without training, the outputs moved by at most {difference:.3g} ({ratio:.1f} dB): fine-tune to recover"
