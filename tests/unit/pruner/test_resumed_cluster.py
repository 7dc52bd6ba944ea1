"""A clustering that was interrupted: its file is that of an uninterrupted one, byte for byte."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core.canonical import fill_defaults
from squeezeflow.core.step import ArtifactPath, Checkpoint, StepInputs, StepOutputs
from squeezeflow.modelkit import checkpoints
from squeezeflow.pruner import cluster
from squeezeflow.v1 import artifact_pb2, technique_pb2

EPOCHS, BATCHES = 3, 5


class Killed(Exception):
    """Stands for the end of the process."""


def run(folder: Path, model: Path, data: Path, checkpoint: Checkpoint | None = None, **params: Any) -> StepOutputs:
    """Clusters with early stopping."""
    folder.mkdir()
    artifacts = {
        "model": ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, model),
        "data": ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, data),
    }
    inputs = StepInputs(artifacts, folder, scale=(1.0,), checkpoint=checkpoint)
    request = technique_pb2.Cluster(fine_tune={"epochs": EPOCHS, "seed": 5, "patience": 2}, **params)
    return cluster.run(fill_defaults(request), inputs, lambda *told, **more: None)


def dying(path: Path, after: int, seconds: float) -> Checkpoint:
    """Gives a checkpoint, and the end of the process after so many writes of it."""
    written = count(1)

    def saved() -> None:
        if next(written) == after:
            raise Killed

    return Checkpoint(path, seconds, saved)


def prune(path: Path) -> None:
    """Sets most weights of the kernels of a model file to zero."""
    import tf_keras

    model = tf_keras.models.load_model(path)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            values = np.abs(layer.kernel.numpy())
            layer.kernel.assign(np.where(values < np.quantile(values, 0.6), 0, layer.kernel))
    models.save(model, path)


@pytest.mark.parametrize(
    ("params", "seconds", "writes", "place"),
    [
        pytest.param({"per_channel": True}, 0.0, EPOCHS - 1, f"epoch {EPOCHS - 1}", id="by channel, an epoch's end"),
        pytest.param(
            {"number_of_clusters": 6}, 1e-9, BATCHES + 2, "batch 2 of epoch 2", id="zeros kept, inside of an epoch"
        ),
    ],
)
def test_a_resumed_clustering_writes_the_file_of_an_uninterrupted_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    params: dict[str, Any],
    seconds: float,
    writes: int,
    place: str,
) -> None:
    monkeypatch.setattr(checkpoints, "MOST_SHARE", 1e9)
    model = models.tf_keras_file(tmp_path)
    if "per_channel" not in params:
        prune(model)
    rng = np.random.default_rng(0)
    data = tmp_path / "data.npz"
    np.savez(data, x_train=rng.random((160, 28, 28, 1), np.float32), y_train=rng.integers(0, 10, 160))
    whole = run(tmp_path / "whole", model, data, **params)
    with pytest.raises(Killed):
        run(tmp_path / "killed", model, data, dying(tmp_path / "state", writes, seconds), **params)
    resumed = run(tmp_path / "resumed", model, data, Checkpoint(tmp_path / "state"), **params)
    again = f"resumed from {place}: an earlier run of this step was interrupted"
    assert set(resumed.notes) ^ set(whole.notes) == {again}
    assert resumed.artifact is not None
    assert whole.artifact is not None
    assert resumed.artifact.path.read_bytes() == whole.artifact.path.read_bytes()
    assert resumed.contract == whole.contract
