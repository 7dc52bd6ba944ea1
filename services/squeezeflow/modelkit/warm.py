"""Takes the cost of a first step away: a spare child does one before it is needed, from file to proof."""

from __future__ import annotations

import tempfile
from pathlib import Path

from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import threads
from squeezeflow.v1 import artifact_pb2


def warm() -> None:
    """Opens, converts (dynamic range) and proves a tiny tf_keras model, then forgets it."""
    threads.limit()
    import tensorflow as tf
    import tf_keras

    from squeezeflow.modelkit import conversion, proof
    from squeezeflow.modelkit.source import open_source

    inputs = tf_keras.Input((8, 8, 1))
    x = tf_keras.layers.Conv2D(2, 3, activation="relu")(inputs)
    x = tf_keras.layers.BatchNormalization()(x)
    outputs = tf_keras.layers.Dense(2, activation="softmax")(tf_keras.layers.Flatten()(x))
    with tempfile.TemporaryDirectory(prefix="squeezeflow-") as folder:
        path, target = Path(folder) / "model.keras", Path(folder) / "model.tflite"
        tf_keras.Model(inputs, outputs).save(str(path))
        source = open_source(ArtifactPath(artifact_pb2.ARTIFACT_KIND_KERAS, path))
        converter = source.converter()
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        conversion.convert(converter, target)
        proof.prove(source, target, bound=None, mode="dynamic", min_sqnr_db=0.0)
    # Names are counted per process: those of a step must not depend on whether it was warmed.
    tf_keras.backend.clear_session()
