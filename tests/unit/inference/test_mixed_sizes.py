"""Evaluation over test images of several sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from tests.layer_models import layer_models

from squeezeflow.core import contracts
from squeezeflow.core.step import ArtifactPath, StepInputs
from squeezeflow.inference import evaluate
from squeezeflow.v1 import artifact_pb2, evaluator_pb2


def one_by_one(path: Path, images: list[np.ndarray]) -> np.ndarray:
    """Gives the outputs for images of any size, each alone."""
    rows = []
    for image in images:
        interpreter = Interpreter(str(path))
        index = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(index, (1, *image.shape))
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, image[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.array(rows)


def test_images_of_several_sizes_are_measured_as_each_alone(tmp_path: Path) -> None:
    path = layer_models() / "free.tflite"
    random = np.random.default_rng(0)
    arrays = {
        f"x_test_{number}": random.normal(size=(300 // (number + 1), *size, 1)).astype(np.float32)
        for number, size in enumerate([(8, 8), (5, 11), (16, 6)])
    }
    values = one_by_one(path, [image for array in arrays.values() for image in array])
    labels = np.where(random.random(len(values)) < 0.7, values.argmax(axis=1), 0)
    np.savez(tmp_path / "data.npz", **arrays, y_test=labels)
    (tmp_path / "contract").write_bytes(contracts.encode(contracts.foreign(path)))
    artifacts = {
        "model": ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, path),
        "contract": ArtifactPath(artifact_pb2.ARTIFACT_KIND_CONTRACT, tmp_path / "contract"),
        "data": ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, tmp_path / "data.npz"),
    }
    inputs = StepInputs(artifacts, tmp_path)
    done = evaluate.run(evaluator_pb2.EvaluateRequest(), inputs, lambda *_, **__: None)
    assert done.metrics["accuracy"].samples == 550
    assert done.metrics["accuracy"].value == pytest.approx(np.mean(values.argmax(axis=1) == labels))
    assert 0.5 < done.metrics["accuracy"].value < 1
    assert {"test samples have 3 sizes", "candidate: 64 samples an invocation"} <= set(done.notes)
    first = evaluate.run(evaluator_pb2.EvaluateRequest(max_samples=310), inputs, lambda *_, **__: None)
    assert first.metrics["accuracy"].value == pytest.approx(np.mean((values.argmax(axis=1) == labels)[:310]))
