"""One fine-tuning in a fresh process: `python fits.py ours|script TECHNIQUE MODEL DATA` prints the seconds of an epoch.

`ours` runs the technique as a worker's child does, with a checkpoint every second; `script` is the same fit with TFMOT
and tf_keras alone; TECHNIQUE is `plain` (scripts only), `prune`, `cluster-16`, `cluster-256` or `train_quantized`. The
first epoch traces and is left out; of the others the quickest counts, since whatever else runs can only slow one down.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

EPOCHS, BATCH, ROWS = 6, 32, 4000
THREADS = len(os.sched_getaffinity(0))


def ours(technique: str, model: Path, data: Path) -> list[float]:
    """Gives the seconds of every epoch but the first, as the step reports them."""
    from squeezeflow.core.step import ArtifactPath, Checkpoint, StepInputs
    from squeezeflow.pruner import cluster, prune
    from squeezeflow.quantizer import train_quantized
    from squeezeflow.v1 import artifact_pb2, technique_pb2

    fine_tune = technique_pb2.FineTune(epochs=EPOCHS, batch_size=BATCH)
    calls: dict[str, Any] = {
        "prune": (prune.run, technique_pb2.Prune(fine_tune=fine_tune)),
        "cluster-16": (cluster.run, technique_pb2.Cluster(fine_tune=fine_tune)),
        "cluster-256": (cluster.run, technique_pb2.Cluster(number_of_clusters=256, fine_tune=fine_tune)),
        "train_quantized": (train_quantized.run, technique_pb2.TrainQuantized(fine_tune=fine_tune)),
    }
    ended: dict[int, float] = {}

    def report(fraction: float, stage: str, *, epoch: int = 0, **news: Any) -> None:
        ended[epoch] = time.perf_counter()

    run, params = calls[technique]
    with tempfile.TemporaryDirectory() as workdir:
        inputs = StepInputs(
            artifacts={
                "model": ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, model),
                "data": ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, data),
            },
            workdir=Path(workdir),
            threads=THREADS,
            checkpoint=Checkpoint(Path(workdir) / "state", seconds=1.0),
        )
        run(params, inputs, report)
    return [ended[epoch] - ended[epoch - 1] for epoch in range(2, EPOCHS + 1)]


def script(technique: str, model_path: Path, data_path: Path) -> list[float]:
    """Gives the seconds of every epoch but the first of a fit with TFMOT alone."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    with np.load(data_path) as data:
        images, labels = data["x_train"], data["y_train"]
    model = tf_keras.models.load_model(model_path, compile=False)
    callbacks: list[Any] = []
    if technique == "prune":
        end = int(0.6 * EPOCHS * len(images) / BATCH)
        schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.8, 0, end, frequency=100)
        model = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
        callbacks.append(tfmot.sparsity.keras.UpdatePruningStep())
    elif technique.startswith("cluster"):
        start = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
        count = int(technique.partition("-")[2])
        model = tfmot.clustering.keras.cluster_weights(model, number_of_clusters=count, cluster_centroids_init=start)
    elif technique == "train_quantized":
        model = tfmot.quantization.keras.quantize_model(model)
    times: list[float] = []

    class Timer(tf_keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            times.append(time.perf_counter())

    model.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[*callbacks, Timer()])
    return [later - earlier for earlier, later in itertools.pairwise(times[1:])]


if __name__ == "__main__":
    seconds = {"ours": ours, "script": script}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    print(min(seconds))
