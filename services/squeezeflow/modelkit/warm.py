"""Takes the cost of a first conversion away from a step: a spare child does one before it is needed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from squeezeflow.modelkit import threads


def warm() -> None:
    """Converts a tiny tf_keras model (dynamic range), and invokes the result in LiteRT."""
    threads.limit()
    import numpy as np
    import tensorflow as tf
    import tf_keras
    from ai_edge_litert.interpreter import Interpreter

    from squeezeflow.modelkit import conversion, keras_source

    inputs = tf_keras.Input((8, 8, 1))
    x = tf_keras.layers.Conv2D(2, 3, activation="relu")(inputs)
    x = tf_keras.layers.BatchNormalization()(x)
    outputs = tf_keras.layers.Dense(2, activation="softmax")(tf_keras.layers.Flatten()(x))
    with tempfile.TemporaryDirectory(prefix="squeezeflow-") as folder:
        draft = Path(folder) / "model.keras"
        tf_keras.Model(inputs, outputs).save(str(draft))
        source = keras_source.open_keras(draft)
        source.predict({source.contract.inputs[0].name: np.zeros((2, 8, 8, 1), np.float32)})
        converter = source.converter()
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        target = Path(folder) / "model.tflite"
        conversion.convert(converter, target)
        interpreter = Interpreter(model_path=str(target))
        interpreter.allocate_tensors()
        interpreter.invoke()
