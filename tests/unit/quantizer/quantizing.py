"""Runs the quantizer on model files, as its tests do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from squeezeflow.core.step import ArtifactPath, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.quantizer import quantize
from squeezeflow.v1 import artifact_pb2, technique_pb2

KINDS = {
    ".keras": artifact_pb2.ARTIFACT_KIND_KERAS,
    ".h5": artifact_pb2.ARTIFACT_KIND_HDF5,
    "": artifact_pb2.ARTIFACT_KIND_SAVED_MODEL,
}
Run = Callable[..., StepOutputs]


def artifact(model: Path) -> ArtifactPath:
    return ArtifactPath(KINDS[model.suffix], model)


def quantize_file(
    folder: Path,
    model: Path,
    arrays: dict[str, np.ndarray] | None = None,
    *,
    told: list[Any] | None = None,
    signature: str = "",
    **params: Any,
) -> StepOutputs:
    """Quantizes a model file, calibrated on given arrays."""
    artifacts = {"model": artifact(model)}
    if arrays is not None:
        np.savez(folder / "data.npz", **arrays)
        artifacts["data"] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, folder / "data.npz")
    workdir = folder / f"work-{len(list(folder.glob('work-*')))}"
    workdir.mkdir()

    def report(fraction: float, stage: str, **_: Any) -> None:
        if told is not None:
            told.append((fraction, stage))

    inputs = StepInputs(artifacts=artifacts, workdir=workdir, signature=signature)
    return quantize.run(technique_pb2.Quantize(**params), inputs, report)


def images(count: int = 40, *, height: int = 28) -> np.ndarray:
    return np.random.default_rng(0).random((count, height, 28, 1), np.float32)


def file_of(outputs: StepOutputs) -> TfliteFile:
    assert outputs.artifact is not None
    return TfliteFile.read(outputs.artifact.path)


def passed(outputs: StepOutputs) -> dict[str, bool]:
    return {invariant.name: invariant.passed for invariant in outputs.invariants}
