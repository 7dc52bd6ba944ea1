"""One recipe as a script with TensorFlow and TFMOT alone: `python recipe_script.py RECIPE EPOCHS MODEL DATA OUT`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster as experimental
from tests.bench.script import convert, evaluate, latency, load_data, write

SPARSITY, CLUSTERS, BATCH = 0.8, 16, 32
PRESERVING = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme


def fit(model: Any, data: dict[str, np.ndarray], epochs: int, *callbacks: Any) -> None:
    """Compiles and fits."""
    model.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data["x_train"], data["y_train"], batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks))


def prune(model: Any, data: dict[str, np.ndarray], epochs: int) -> Any:
    """Prunes with polynomial decay and strips."""
    end = int(0.6 * epochs * len(data["x_train"]) / BATCH)
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, SPARSITY, 0, end, frequency=100)
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
    fit(wrapped, data, epochs, tfmot.sparsity.keras.UpdatePruningStep())
    return tfmot.sparsity.keras.strip_pruning(wrapped)


def cluster(model: Any, data: dict[str, np.ndarray], epochs: int) -> Any:
    """Clusters with the zeros kept and strips."""
    start = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    wrapped = experimental.cluster_weights(
        model, number_of_clusters=CLUSTERS, cluster_centroids_init=start, preserve_sparsity=True
    )
    fit(wrapped, data, epochs)
    return tfmot.clustering.keras.strip_clustering(wrapped)


def train_quantized(model: Any, data: dict[str, np.ndarray], epochs: int) -> Any:
    """Trains with fake quantization that keeps the zeros."""
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    trained = tfmot.quantization.keras.quantize_apply(annotated, PRESERVING())
    fit(trained, data, epochs)
    return trained


def main(recipe: str, epochs: int, model_path: Path, data_path: Path, out: Path) -> None:
    """Makes, evaluates and times the recipe's file."""
    data = load_data(data_path)
    model = tf_keras.models.load_model(model_path, compile=False)
    if recipe.startswith("prune") or recipe == "pqat":
        model = prune(model, data, epochs)
    if "cluster" in recipe:
        model = cluster(model, data, epochs)
    if recipe == "pqat":
        model = train_quantized(model, data, epochs)
    mode = {"prune": "float32", "pqat": "dynamic"}.get(recipe, recipe.rpartition("-")[2])
    path = out / f"script-{recipe}.tflite"
    interpreter = write(convert(model, mode, data["x_train"]), path)
    print(evaluate(interpreter, data["x_test"], data["y_test"]), latency(path, data["x_test"][:1]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *(Path(argument) for argument in sys.argv[3:]))
