"""Calibration on images of several sizes in one dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests import models
from tests.unit.quantizer.quantizing import artifact, passed, quantize_file

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.step import ArtifactPath, StepInputs
from squeezeflow.modelkit.data import bind
from squeezeflow.modelkit.finetune import resolve
from squeezeflow.modelkit.source import open_source
from squeezeflow.v1 import artifact_pb2, technique_pb2

Quantize = technique_pb2.Quantize
# The last size has values that the others have not: a range that fits all was seen on all.
SIZES = {(18, 20): 1.0, (35, 17): 1.0, (40, 40): 4.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.free_size_file(tmp_path_factory.mktemp("free"))


def arrays(split: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        f"x_{split}_{number}": random.uniform(-most, most, (8, *size, 3)).astype(np.float32)
        for number, (size, most) in enumerate(SIZES.items())
    }


@pytest.mark.parametrize("backend", [Quantize.BACKEND_CONVERTER, Quantize.BACKEND_AI_EDGE])
def test_ranges_come_from_the_images_of_every_size(
    tmp_path: Path, model: Path, backend: technique_pb2.Quantize.Backend
) -> None:
    given = {**arrays("calibration"), **arrays("test")}
    made = quantize_file(tmp_path, model, given, mode=Quantize.MODE_INT8, backend=backend)
    assert passed(made)["integer"]
    assert "calibrated on all 24 samples of calibration in 3 sizes" in made.notes
    assert "and on 16 samples of 2 other sizes" in made.notes
    assert made.contract is not None
    assert made.artifact is not None
    runner, source = Runner(made.artifact.path, made.contract), open_source(artifact(model))
    for images in arrays("test").values():
        (found,) = runner.invoke({"image": images}).values()
        (expected,) = source.predict({"image": images}).values()
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_fine_tuning_wants_one_size_and_names_two_that_differ(tmp_path: Path, model: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays("train"), y_train=np.zeros(24, int))
    data = ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, tmp_path / "data.npz")
    source = open_source(artifact(model))
    bound = bind(StepInputs({"data": data}, tmp_path), source.contract)
    with pytest.raises(SqueezeflowError, match=r"DATA_MISMATCH: arrays x_train_0 of \[18, 20, 3\] and x_train_1"):
        resolve(technique_pb2.FineTune(), source, bound)
