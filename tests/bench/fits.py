"""One fine-tuning in a fresh process, epoch by epoch on demand: `python fits.py ours|script TECHNIQUE MODEL DATA`.

`ours` runs the technique as a worker's child does, with a checkpoint every second; `script` is the same fit with TFMOT
and tf_keras alone; TECHNIQUE is `plain` (scripts only), `prune`, `cluster-16`, `cluster-256` or `train_quantized`. The
first epoch traces and is left out. For every line on standard input one more epoch is run and its seconds are printed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

EPOCHS, BATCH, ROWS = 11, 32, 4000
# Before the seconds of an epoch, among whatever else is printed.
PREFIX = "epoch "
THREADS = len(os.sched_getaffinity(0))


def ours(technique: str, model: Path, data: Path) -> None:
    """Runs the technique."""
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
        run(params, inputs, lambda *_, **__: None)


def script(technique: str, model_path: Path, data_path: Path) -> None:
    """Runs the fit with TFMOT alone."""
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
    model.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=callbacks)


def on_demand() -> None:
    """Lets every `fit` wait at the end of an epoch, and tell how long the epoch took, with what comes between two."""
    import tf_keras

    class Gate(tf_keras.callbacks.Callback):
        began: float | None = None

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            taken = 0.0 if self.began is None else time.perf_counter() - self.began
            print(f"{PREFIX}{taken}", flush=True)
            sys.stdin.readline()
            self.began = time.perf_counter()

    fit = tf_keras.Model.fit

    def gated(self: Any, *args: Any, callbacks: Any = (), **options: Any) -> Any:
        return fit(self, *args, callbacks=[*callbacks, Gate()], **options)

    tf_keras.Model.fit = gated


if __name__ == "__main__":
    on_demand()
    {"ours": ours, "script": script}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
