"""A model with attention, compressed by the command line alone; plain TensorFlow and tf_keras read its exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models
from tests.integration.command_line import CommandLine

from squeezeflow.core import contracts
from squeezeflow.core.litert import Runner
from squeezeflow.core.tflite import TfliteFile

RECIPES = ("int8", "prune", "pcqat")
# What is exported of a recipe is the Keras model before its last step.
SPARSITY, CLUSTERS = 0.6, 8


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(32, 12, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def out(samples: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `squeezeflow compress --out` wrote, with both exports, with no server running."""
    folder = tmp_path_factory.mktemp("attention")
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 160)
    steps = (random.normal(size=(160, 12, 16)) + labels[:, None, None]).astype(np.float32)
    np.savez(folder / "data.npz", x_train=steps, y_train=labels, x_test=samples, y_test=np.zeros(32, int))
    line = CommandLine(folder / "home")
    recipes = [word for recipe in RECIPES for word in ("--recipe", recipe)]
    settings = ["--set", f"prune.sparsity={SPARSITY}", "--set", f"cluster.number_of_clusters={CLUSTERS}"]
    said = line.run(
        "compress", str(models.attention_file(folder)), "--data", str(folder / "data.npz"), *recipes, *settings,
        "--epochs", "1", "--out", str(folder / "out"), "--export", "savedmodel", "--export", "keras",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return folder / "out"


def keras_of(out: Path, recipe: str) -> Any:
    import tf_keras

    return tf_keras.models.load_model(str(out / f"{recipe}.keras"), compile=False)


def saved_model_of(out: Path, recipe: str, samples: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(out / f"{recipe}.savedmodel"))
    return np.asarray(loaded.signatures["serving_default"](steps=tf.constant(samples))["label"])


def tflite_of(out: Path, recipe: str, samples: np.ndarray) -> np.ndarray:
    path = out / f"{recipe}.tflite"
    return Runner(path, contracts.foreign(path)).invoke({"steps": samples})["label"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_both_exports_compute_the_same(out: Path, samples: np.ndarray, recipe: str) -> None:
    expected = np.asarray(keras_of(out, recipe)(samples))
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(saved_model_of(out, recipe, samples), expected, atol=1e-5)


def test_the_float_file_computes_what_the_export_does(out: Path, samples: np.ndarray) -> None:
    np.testing.assert_allclose(tflite_of(out, "prune", samples), saved_model_of(out, "prune", samples), atol=1e-4)


@pytest.mark.parametrize(("recipe", "clustered"), [("prune", False), ("pcqat", True)])
def test_attention_is_compressed_like_the_rest_in_the_exported_model(out: Path, recipe: str, clustered: bool) -> None:
    model = keras_of(out, recipe)
    kernels = {v.name: v.numpy() for v in model.get_layer("heads").weights if "kernel" in v.name}
    kernels |= {v.name: v.numpy() for v in model.get_layer("mixed").weights if "kernel" in v.name}
    assert len(kernels) == 5
    for name, kernel in kernels.items():
        assert np.mean(kernel == 0) >= SPARSITY - 0.01, name
        assert (len(np.unique(kernel)) <= CLUSTERS) == clustered, name


@pytest.mark.parametrize(("recipe", "left_float"), [("int8", ()), ("pcqat", ("embed", "heads"))])
def test_integer_files_with_attention_hold_integers(
    out: Path, samples: np.ndarray, recipe: str, left_float: tuple[str, ...]
) -> None:
    # Quantization-aware training leaves attention alone, and lists it; quantization after training takes it.
    weights = TfliteFile.read(out / f"{recipe}.tflite").weights
    floats = [weight.tensor.name for weight in weights if weight.tensor.dtype != "int8"]
    assert bool(floats) == bool(left_float)
    assert all(any(layer in name for layer in left_float) for name in floats), floats
    assert np.ptp(tflite_of(out, recipe, samples), axis=0).max() > 0
