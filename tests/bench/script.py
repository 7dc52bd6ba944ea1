"""The bare script that the services are measured against: what an engineer would write with TensorFlow alone.

`python script.py warm MODEL DATA` imports and warms up, then does one conversion for each line on standard input (the
mode) and prints its seconds. `python script.py cold MODEL DATA OUT` does once what `squeezeflow compress --recipe
dynamic` does: float32 and dynamic range, both evaluated on the test arrays and timed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter

CALIBRATION_SAMPLES = 200
TIMED_RUNS = 100


def load_data(path: Path) -> dict[str, np.ndarray]:
    """Gives the arrays; uint8 images become floats in 0 to 1 with a channel axis."""
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    return {
        name: value[..., None] / np.float32(255) if value.dtype == np.uint8 and name[0] == "x" else value
        for name, value in arrays.items()
    }


def convert(model: Any, mode: str, images: np.ndarray, samples: int = CALIBRATION_SAMPLES) -> bytes:
    """Converts to TFLite: `float32`, `dynamic` or `int8`."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "int8":

        def representative() -> Iterator[list[np.ndarray]]:
            for index in range(samples):
                yield [images[index : index + 1].astype(np.float32)]

        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def write(data: bytes, path: Path) -> Interpreter:
    """Writes the file and invokes it once."""
    path.write_bytes(data)
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    detail = interpreter.get_input_details()[0]
    interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    interpreter.invoke()
    return interpreter


def evaluate(interpreter: Interpreter, images: np.ndarray, labels: np.ndarray) -> float:
    """Gives the accuracy over all test samples, in batches of 100."""
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, [100, *images.shape[1:]])
    interpreter.allocate_tensors()
    correct = 0
    for start in range(0, len(images) - 99, 100):
        interpreter.set_tensor(index, images[start : start + 100].astype(np.float32))
        interpreter.invoke()
        output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        correct += int((output.argmax(-1) == labels[start : start + 100]).sum())
    return correct / len(images)


def latency(path: Path, image: np.ndarray) -> float:
    """Gives the median milliseconds of one invocation."""
    interpreter = write(path.read_bytes(), path)
    index = interpreter.get_input_details()[0]["index"]
    times = []
    for _ in range(TIMED_RUNS):
        began = time.perf_counter()
        interpreter.set_tensor(index, image.astype(np.float32))
        interpreter.invoke()
        times.append(time.perf_counter() - began)
    return float(np.median(times) * 1000)


def warm(model_path: Path, data_path: Path) -> None:
    """Answers each mode on standard input with the seconds that it took to load, convert, write and invoke once."""
    images = load_data(data_path)["x_train"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.tflite"
        write(convert(tf_keras.models.load_model(model_path, compile=False), "dynamic", images), out)
        print("ready", flush=True)
        for line in sys.stdin:
            mode, _, samples = line.strip().partition(" ")
            began = time.perf_counter()
            model = tf_keras.models.load_model(model_path, compile=False)
            write(convert(model, mode, images, int(samples or CALIBRATION_SAMPLES)), out)
            print(time.perf_counter() - began, flush=True)


def cold(model_path: Path, data_path: Path, out: Path) -> None:
    """Converts to float32 and dynamic range, evaluates and times both."""
    data = load_data(data_path)
    model = tf_keras.models.load_model(model_path, compile=False)
    report = {}
    for mode in ("float32", "dynamic"):
        path = out / f"{mode}.tflite"
        interpreter = write(convert(model, mode, data["x_train"]), path)
        accuracy = evaluate(interpreter, data["x_test"], data["y_test"])
        report[mode] = {"accuracy": accuracy, "latency_p50_ms": latency(path, data["x_test"][:1])}
    print(json.dumps(report))


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[2:]]
    {"warm": warm, "cold": cold}[sys.argv[1]](*paths)
