"""Kinds of models that the other tests leave out, through recipes that train, and an application as people have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.client import Client
from squeezeflow.core import contracts
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.v1 import jobs_pb2, technique_pb2

LAYERS = {"table", "words", "separable", "up", "pixels", "volume", "shared", "kind", "number"}
# TFMOT has no fake quantization for these.
LEFT_FLOAT = {"table", "words", "volume"}


@pytest.fixture(scope="module")
def job(client: Client, tmp_path_factory: pytest.TempPathFactory) -> jobs_pb2.Job:
    """Ids and an image in, class and number out, every kind of kernel and a shared layer: three trained steps."""
    folder = tmp_path_factory.mktemp("kinds")
    random, arrays = np.random.default_rng(0), {}
    for split in ("train", "test"):
        arrays[f"ids_{split}"] = random.integers(0, 50, (96, 10)).astype(np.int32)
        arrays[f"image_{split}"] = random.normal(size=(96, 8, 8, 2)).astype(np.float32)
        arrays[f"y.kind_{split}"] = random.integers(0, 3, 96)
        arrays[f"y.number_{split}"] = random.normal(size=(96, 1)).astype(np.float32)
    np.savez(folder / "data.npz", **arrays)
    return client.compress(
        models.many_kinds_file(folder),
        data=folder / "data.npz",
        recipes=["pcqat"],
        fine_tune=technique_pb2.FineTune(epochs=1),
    )


def test_every_kind_of_kernel_is_trained_or_named_with_the_reason(job: jobs_pb2.Job) -> None:
    assert {c.recipe: c.error.message for c in job.candidates if c.error.reason} == {}
    steps = {step.technique: step for candidate in job.candidates for step in candidate.steps}
    for technique, left in (("prune", set()), ("cluster", set()), ("train_quantized", LEFT_FLOAT)):
        outcomes = {layer.layer: layer for layer in steps[technique].layers}
        assert {name for name in LAYERS if outcomes[name].applied} == LAYERS - left, technique
        assert all(outcomes[name].detail for name in left)


def test_zeros_and_few_values_are_in_the_file_in_every_kind_of_kernel(
    client: Client, job: jobs_pb2.Job, tmp_path: Path
) -> None:
    (candidate,) = (c for c in job.candidates if c.recipe == "pcqat")
    assert {"sparsity", "clusters"} <= {invariant.name for invariant in candidate.invariants}
    assert all(invariant.passed for invariant in candidate.invariants)
    weights = TfliteFile.read(client.download(candidate.artifact, tmp_path / "pcqat.tflite")).weights
    large = [weight for weight in weights if weight.tensor.size >= 100]
    assert len(large) >= 7
    for weight in large:
        assert weight.zeros >= 0.78 * weight.tensor.size, weight.tensor.name
        assert weight.values is not None
    contract = contracts.decode(client.download(candidate.contract, tmp_path / "contract.json"))
    assert [output.name for output in contract.outputs] == ["kind", "number"]


def test_an_application_of_keras_3_becomes_int8(client: Client, tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(7)
    model = keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), alpha=0.25, classes=10)
    images = np.random.default_rng(0).uniform(-1, 1, (64, 32, 32, 3)).astype(np.float32)
    settle(model, images)
    np.savez(tmp_path / "images.npz", x_train=images)
    job = client.compress(
        models.save(model, tmp_path / "mobilenet.keras"), data=tmp_path / "images.npz", recipes=["dynamic", "int8"]
    )
    assert {c.recipe: c.error.message for c in job.candidates if c.error.reason} == {}
    float32, dynamic, int8 = job.candidates
    assert float32.metrics["max_abs_diff"].value < 1e-5
    assert {invariant.name for invariant in int8.invariants} >= {"finite", "alive", "close", "integer"}
    assert all(small.sizes.raw_bytes < 0.45 * float32.sizes.raw_bytes for small in (dynamic, int8))


def settle(model: Any, images: np.ndarray) -> None:
    """Gives the norms of an untrained model the moments of its data: without, outputs are the same for all images."""
    norms = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
