"""A model for images of any height and width, and a dataset that holds several sizes, through the real services."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests import models

from squeezeflow.client import Client
from squeezeflow.core import contracts
from squeezeflow.core.litert import Runner
from squeezeflow.v1 import jobs_pb2, technique_pb2

SIZES = ((20, 24), (33, 17), (48, 48))


@pytest.fixture(scope="module")
def arrays() -> Mapping[str, np.ndarray]:
    """40 images for calibration and 36 with a class for the test, in three sizes each."""
    random = np.random.default_rng(0)
    arrays = {"y_test": random.integers(0, 3, 36)}
    for split, count in (("calibration", (20, 10, 10)), ("test", (6, 18, 12))):
        for number, ((height, width), images) in enumerate(zip(SIZES, count, strict=True)):
            arrays[f"x_{split}_{number}"] = random.integers(0, 256, (images, height, width, 3)).astype(np.uint8)
    return arrays


@pytest.fixture(scope="module")
def job(client: Client, arrays: Mapping[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> jobs_pb2.Job:
    folder = tmp_path_factory.mktemp("mixed")
    np.savez(folder / "mixed.npz", **arrays)
    recipes = ["int8", jobs_pb2.Recipe(name="ai-edge", techniques=[technique_pb2.Technique(
        quantize=technique_pb2.Quantize(
            mode=technique_pb2.Quantize.MODE_INT8, backend=technique_pb2.Quantize.BACKEND_AI_EDGE
        )
    )])]  # fmt: skip
    return client.compress(models.free_size_file(folder), data=folder / "mixed.npz", scale=[1 / 255], recipes=recipes)


def test_every_size_is_calibrated_compared_and_measured(job: jobs_pb2.Job) -> None:
    assert {c.recipe: c.error.message for c in job.candidates if c.error.reason} == {}
    for candidate in job.candidates:
        assert "and on 14 samples of 2 other sizes" in candidate.notes
        assert "test samples have 3 sizes" in candidate.notes
        assert candidate.metrics["accuracy"].samples == 36
        assert candidate.metrics["latency_p50_ms"].value > 0
        if candidate.recipe != "float32":
            assert "calibrated on all 40 samples of calibration in 3 sizes" in candidate.notes


def test_the_accuracy_is_that_of_every_image_alone(
    client: Client, job: jobs_pb2.Job, arrays: Mapping[str, np.ndarray], tmp_path: Path
) -> None:
    for candidate in job.candidates:
        path = client.download(candidate.artifact, tmp_path / f"{candidate.recipe}.tflite")
        contract = contracts.decode(client.download(candidate.contract, tmp_path / f"{candidate.recipe}.json"))
        runner = Runner(path, contract)
        labels = []
        for number in range(len(SIZES)):
            for image in arrays[f"x_test_{number}"]:
                (values,) = runner.invoke({"image": (image[None] / 255).astype(np.float32)}).values()
                labels.append(values.argmax())
        assert candidate.metrics["accuracy"].value == pytest.approx(np.mean(np.array(labels) == arrays["y_test"]))


def test_the_served_model_takes_every_size(client: Client, job: jobs_pb2.Job) -> None:
    for height, width in SIZES:
        (answer,) = client.infer(job.candidates[1].artifact, {"image": np.zeros((2, height, width, 3), "f")}).values()
        assert answer.shape == (2, 3)
