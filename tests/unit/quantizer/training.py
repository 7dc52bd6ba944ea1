"""Runs of quantization-aware training that several tests look at: small models, synthetic samples, one epoch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.quantizer import train_quantized
from squeezeflow.v1 import artifact_pb2, technique_pb2

CLASSES = 4
_numbers = itertools.count()


def tf_keras_layers() -> Any:
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    return tf_keras.layers


def model_of(shape: tuple[int, ...], build: Callable[[Any, Any], Any]) -> Any:
    """Gives a model with the input `image` that `build(layers, input)` makes, ending in softmax over the classes."""
    import tf_keras

    layers = tf_keras_layers()
    inputs = tf_keras.Input(shape, name="image")
    x = layers.Flatten(name="flatten")(build(layers, inputs))
    outputs = layers.Dense(CLASSES, activation="softmax", name="label")(x)
    return tf_keras.Model(inputs, outputs, name="net")


def samples(shape: tuple[int, ...], count: int = 96) -> dict[str, np.ndarray]:
    """Gives samples whose class is the quarter of the range that their mean lies in."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, count)
    noise = rng.random((count, *shape), np.float32)
    scale = (labels + 1).reshape(-1, *[1] * len(shape)).astype(np.float32)
    return {"x_train": noise * scale / CLASSES, "y_train": labels}


def train(folder: Path, model: Any, arrays: dict[str, np.ndarray] | None, **params: Any) -> StepOutputs:
    """Trains a model, or a model file, for an epoch."""
    number = next(_numbers)
    path = model if isinstance(model, Path) else models.save(model, folder / f"model-{number}.keras")
    artifacts = {"model": ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path)}
    if arrays is not None:
        np.savez(folder / f"data-{number}.npz", **arrays)
        artifacts["data"] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, folder / f"data-{number}.npz")
    workdir = folder / f"work-{number}"
    workdir.mkdir()
    request = technique_pb2.TrainQuantized(
        fine_tune=technique_pb2.FineTune(**{"epochs": 1, **params.pop("fine_tune", {})}), **params
    )
    return train_quantized.run(request, StepInputs(artifacts=artifacts, workdir=workdir), lambda *_, **__: None)


def file_of(outputs: StepOutputs) -> TfliteFile:
    assert outputs.artifact is not None
    return TfliteFile.read(outputs.artifact.path)


def invariant(outputs: StepOutputs, name: str) -> str:
    return next(invariant.detail for invariant in outputs.invariants if invariant.name == name)


def details(outputs: StepOutputs) -> dict[str, str]:
    return {layer.layer: layer.detail for layer in outputs.layers}


def refusal(folder: Path, model: Any, arrays: dict[str, np.ndarray] | None, **params: Any) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        train(folder, model, arrays, **params)
    return caught.value
