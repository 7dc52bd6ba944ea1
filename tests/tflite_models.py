"""TFLite files of small networks, made once a test run in a process of its own: TensorFlow stays out of the tests.

`cnn.tflite` (float32), `cnn_int8.tflite` (integer inside, float I/O) and `cnn_int8_io.tflite` (integer I/O) classify
Fashion-MNIST; `binary.tflite` has one sigmoid unit, `logit.tflite` the same before the sigmoid, `values.tflite` two
linear units, all over the same images and not trained; `two.tflite` has two inputs and two outputs; `sequence.tflite`
keeps state between calls. `remainder` needs no TensorFlow: a valid file that kills its process on one of its inputs.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
ROOT = DATA.parent.parent


@cache
def tflite_models() -> Path:
    """Gives the folder of the files; they are made at the first call of a test run."""
    folder = Path(tempfile.mkdtemp(prefix="squeezeflow-tflite-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = subprocess.run(
        [sys.executable, "-m", "tests.tflite_models", folder], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-4000:]
    return folder


def main(folder: Path) -> None:
    """Trains, converts and writes all of them."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    with np.load(DATA / "fashion_mnist.npz", allow_pickle=False) as arrays:
        images, labels = arrays["x_train"][..., None] / np.float32(255), arrays["y_train"]
    layers = tf_keras.layers

    def network(units: int, activation: str | None) -> Any:
        image = tf_keras.Input((28, 28, 1), name="image")
        x = layers.Conv2D(8, 3, strides=2, activation="relu")(image)
        x = layers.Conv2D(16, 3, strides=2, activation="relu")(x)
        return tf_keras.Model(image, layers.Dense(units, activation=activation, name="answer")(layers.Flatten()(x)))

    def write(model: Any, name: str, **settings: Any) -> None:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        for key, value in settings.items():
            setattr(converter, key, value)
        (folder / name).write_bytes(converter.convert())

    integer = {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "representative_dataset": lambda: ({"image": images[i : i + 1]} for i in range(100)),
    }
    classifier = network(10, "softmax")
    classifier.compile("adam", "sparse_categorical_crossentropy")
    classifier.fit(images[:6000], labels[:6000], batch_size=32, epochs=2, verbose=0)
    write(classifier, "cnn.tflite")
    write(classifier, "cnn_int8.tflite", **integer)
    write(classifier, "cnn_int8_io.tflite", inference_input_type=tf.int8, inference_output_type=tf.int8, **integer)
    binary, logit = network(1, "sigmoid"), network(1, None)
    logit.set_weights(binary.get_weights())
    write(binary, "binary.tflite")
    write(logit, "logit.tflite")
    write(network(2, None), "values.tflite")

    zeta, alpha = tf_keras.Input((6,), name="zeta"), tf_keras.Input((6,), name="alpha")
    both = [layers.Dense(4, name="second")(zeta), layers.Dense(4, name="first")(alpha)]
    write(tf_keras.Model([zeta, alpha], both), "two.tflite")
    steps = tf_keras.Input((12, 3), batch_size=1, name="steps")
    recurrent = tf_keras.Model(steps, layers.Dense(4, activation="softmax")(layers.LSTM(5)(steps)))
    write(recurrent, "sequence.tflite")


def remainder(path: Path, *, dividend: int | None = None) -> Path:
    """Writes a file that gives `x` modulo −1, int32 (batch, 1): the smallest int32 there ends the process with SIGFPE.

    Args:
        dividend: divided in place of `x`; the smallest int32 makes a file that kills every process that invokes it.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    constants = [np.array([-1], "int32"), np.array([dividend or 0], "int32")]
    graph = schema.SubGraphT()
    graph.tensors = []
    for name, shape, buffer in (("x", [1, 1], 0), ("divisor", [1], 1), ("dividend", [1], 2), ("remainder", [1, 1], 0)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.type = name, shape, buffer, schema.TensorType.INT32
        graph.tensors.append(tensor)
    modulo, code, model = schema.OperatorT(), schema.OperatorCodeT(), schema.ModelT()
    modulo.opcodeIndex, modulo.inputs, modulo.outputs = 0, [0 if dividend is None else 2, 1], [3]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FLOOR_MOD
    code.version = 1
    graph.inputs, graph.outputs, graph.operators = [0], [3], [modulo]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    for constant in constants:
        model.buffers.append(schema.BufferT())
        model.buffers[-1].data = constant.tobytes()
    builder = flatbuffers.Builder(512)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]))
