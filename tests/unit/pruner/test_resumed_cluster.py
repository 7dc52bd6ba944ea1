"""A clustering that was interrupted: its file is that of an uninterrupted one, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core.canonical import fill_defaults
from squeezeflow.core.step import ArtifactPath, Checkpoint, StepInputs, StepOutputs
from squeezeflow.pruner import cluster
from squeezeflow.v1 import artifact_pb2, technique_pb2

EPOCHS = 3


class Killed(Exception):
    """Stands for the end of the process."""


def run(folder: Path, model: Path, data: Path, *, checkpoint: Checkpoint | None = None, die: bool = False) -> Any:
    """Clusters with early stopping, or dies in the last epoch."""
    folder.mkdir()
    artifacts = {
        "model": ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, model),
        "data": ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, data),
    }
    inputs = StepInputs(artifacts, folder, scale=(1.0,), checkpoint=checkpoint)
    params = technique_pb2.Cluster(per_channel=True, fine_tune={"epochs": EPOCHS, "seed": 5, "patience": 2})

    def report(fraction: float, stage: str, *, epoch: int = 0, **more: Any) -> None:
        if die and epoch == EPOCHS:
            raise Killed

    return cluster.run(fill_defaults(params), inputs, report)


def test_a_resumed_clustering_writes_the_file_of_an_uninterrupted_one(tmp_path: Path) -> None:
    model = models.tf_keras_file(tmp_path)
    rng = np.random.default_rng(0)
    data = tmp_path / "data.npz"
    np.savez(data, x_train=rng.random((160, 28, 28, 1), np.float32), y_train=rng.integers(0, 10, 160))
    checkpoint = Checkpoint(tmp_path / "state")
    whole: StepOutputs = run(tmp_path / "whole", model, data)
    with pytest.raises(Killed):
        run(tmp_path / "killed", model, data, checkpoint=checkpoint, die=True)
    resumed: StepOutputs = run(tmp_path / "resumed", model, data, checkpoint=checkpoint)
    again = f"resumed from epoch {EPOCHS - 1}: an earlier run of this step was interrupted"
    assert set(resumed.notes) ^ set(whole.notes) == {again}
    assert resumed.artifact is not None
    assert whole.artifact is not None
    assert resumed.artifact.path.read_bytes() == whole.artifact.path.read_bytes()
    assert resumed.contract == whole.contract
