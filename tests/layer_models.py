"""Small TFLite files by layer and mode, made once a test run in a process of its own: tests stay free of TensorFlow.

`cnn_<mode>` has every common layer; `pruned_<mode>` is the same with four fifths of its kernels zero, which
`kernels.npz` holds by layer name as Keras does. The rest shows one thing each: state, free axes, a batch that is
hard-coded or mixes its samples, operators without a kernel. Weights are random, by a fixed seed.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
# Files that others made: a quantized classifier without a signature, a float network with three outputs.
FER = ROOT / "tests" / "data" / "models" / "fer" / "emotion_model_quantized.tflite"
PITCH = ROOT / "tests" / "data" / "models" / "basic_pitch" / "nmp.tflite"
SPARSITY = 0.8


@cache
def layer_models() -> Path:
    """Gives the folder of the files; they are made at the first call of a test run."""
    folder = Path(tempfile.mkdtemp(prefix="squeezeflow-layer-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = subprocess.run(
        [sys.executable, "-m", "tests.layer_models", folder], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-4000:]
    return folder


class Maker:
    """Writes TFLite files of tf_keras models and of functions."""

    def __init__(self, folder: Path) -> None:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import tensorflow as tf
        import tf_keras

        tf_keras.utils.set_random_seed(3)
        self.tf, self.keras, self.folder = tf, tf_keras, folder
        self.random = np.random.default_rng(3)

    def model(self, name: str, model: Any, mode: str = "float32", *, sparse: bool = False) -> None:
        """Converts a Keras model."""
        converter = self.tf.lite.TFLiteConverter.from_keras_model(model)
        self.write(name, converter, mode, [tuple(t.shape) for t in model.inputs], sparse=sparse)

    def function(
        self, name: str, function: Any, shape: list[int | None], mode: str = "float32", **settings: Any
    ) -> None:
        """Converts a function of one float tensor `x` that gives `y`, and whose signature is kept."""
        tf = self.tf
        module = tf.Module()
        module.f = tf.function(lambda x: {"y": function(x)}, input_signature=[tf.TensorSpec(shape, tf.float32, "x")])
        converter = tf.lite.TFLiteConverter.from_concrete_functions([module.f.get_concrete_function()], module)
        for key, value in settings.items():
            setattr(converter, key, value)
        self.write(name, converter, mode, [tuple(shape)])

    def write(self, name: str, converter: Any, mode: str, shapes: list[Any], *, sparse: bool = False) -> None:
        """Sets the mode and writes the file."""
        lite = self.tf.lite
        optimizations = [] if mode == "float32" else [lite.Optimize.DEFAULT]
        converter.optimizations = [*optimizations, *([lite.Optimize.EXPERIMENTAL_SPARSITY] if sparse else [])]
        if mode == "float16":
            converter.target_spec.supported_types = [self.tf.float16]
        if mode.startswith("int8"):
            converter.representative_dataset = self.samples(shapes)
        if mode == "int8_io":
            converter.inference_input_type = converter.inference_output_type = self.tf.int8
        (self.folder / f"{name}.tflite").write_bytes(converter.convert())

    def samples(self, shapes: list[Any]) -> Callable[[], Iterator[list[np.ndarray]]]:
        """Gives a representative dataset, the same for one model in every mode."""
        one, random = [[size or 1 for size in shape] for shape in shapes], np.random.default_rng(5)
        return lambda: ([random.uniform(-1, 1, shape).astype("f") for shape in one] for _ in range(20))


def main(folder: Path) -> None:
    """Makes all of them."""
    maker = Maker(folder)
    networks(maker)
    recurrent(maker)
    batches(maker)
    single_operators(maker)
    integer_modes(maker)
    clustered(maker)
    several_graphs(maker)


def networks(maker: Maker) -> None:
    """A CNN in every mode, and a pruned one."""
    layers = maker.keras.layers

    def cnn() -> Any:
        image = layers.Input((12, 12, 3), name="image")
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, use_bias=False, name="first")(image)))
        x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
        x = layers.Flatten()(layers.Conv2D(32, 3, activation="relu", name="second")(x))
        x = layers.Dense(32, activation="relu", name="hidden")(x)
        return maker.keras.Model(image, layers.Dense(5, activation="softmax", name="scores")(x))

    model, pruned = cnn(), cnn()
    kernels = {}
    for layer in pruned.layers:
        if layer.name in ("first", "second", "hidden", "scores"):
            kernel, *rest = layer.get_weights()
            order = np.argsort(np.abs(kernel), axis=None)
            kernel.flat[order[: kernel.size - round(kernel.size * (1 - SPARSITY))]] = 0
            layer.set_weights([kernel, *rest])
            kernels[layer.name] = kernel
    np.savez(maker.folder / "kernels.npz", **kernels)
    for mode in ("float32", "float16", "dynamic", "int8", "int8_io"):
        maker.model(f"cnn_{mode}", model, mode)
        if mode != "int8_io":
            maker.model(f"pruned_{mode}", pruned, mode)
    maker.model("sparse_float32", pruned, sparse=True)
    maker.model("sparse_dynamic", pruned, "dynamic", sparse=True)


def recurrent(maker: Maker) -> None:
    """Fused LSTMs keep state between invocations; a GRU is a loop over a graph of its own."""
    layers = maker.keras.layers
    steps = layers.Input((6, 20), batch_size=1, name="steps")
    lstm = layers.LSTM(64, name="lstm")
    model = maker.keras.Model(steps, layers.Dense(3, activation="softmax")(lstm(steps)))
    kernel, recurrent_kernel, bias = lstm.get_weights()
    kernel[np.abs(kernel) < np.quantile(np.abs(kernel), SPARSITY)] = 0
    lstm.set_weights([kernel, recurrent_kernel, bias])
    np.save(maker.folder / "lstm_kernel.npy", kernel)
    for mode in ("float32", "dynamic", "int8"):
        maker.model(f"lstm_{mode}", model, mode)
    # 40 units: recurrent weights of 1,600 elements, input weights of 160.
    few = layers.Input((6, 4), batch_size=1)
    maker.model("lstm_few_dynamic", maker.keras.Model(few, layers.LSTM(40)(few)), "dynamic")
    # 16 units over 4 inputs: one gate of the recurrent kernel is as large as the whole input kernel.
    even, same = layers.Input((6, 4), batch_size=1), layers.LSTM(16, name="lstm")
    model = maker.keras.Model(even, layers.Dense(3)(same(even)))
    kernel, recurrent_kernel, bias = same.get_weights()
    # The quantile is one of the 256 values.
    kernel[np.abs(kernel) <= np.quantile(np.abs(kernel), SPARSITY)] = 0
    same.set_weights([kernel, recurrent_kernel, bias])
    np.save(maker.folder / "lstm_even_kernel.npy", kernel)
    for mode in ("float32", "int8"):
        maker.model(f"lstm_even_{mode}", model, mode)
    wide = layers.Input((6, 32), batch_size=1)
    maker.model("gru_dynamic", maker.keras.Model(wide, layers.GRU(32)(wide)), "dynamic")


def batches(maker: Maker) -> None:
    """How an axis 0 of another size is met."""
    tf, layers = maker.tf, maker.keras.layers
    matrix = tf.constant(maker.random.normal(size=(8, 3)).astype("f"))
    maker.function("reshape", lambda x: tf.reshape(x, [1, 8]) @ matrix, [1, 2, 4])
    maker.function("reshape_pairs", lambda x: tf.reshape(x, [2, 8]) @ matrix, [2, 2, 4])
    maker.function("mixes", lambda x: x - tf.reduce_mean(x), [None, 4])
    maker.function("total", lambda x: tf.reduce_sum(x * x), [1, 4])
    first, second = layers.Input((4,), name="z_first"), layers.Input((4,), name="a_second")
    outputs = [layers.Dense(3, name="p")(first), layers.Dense(3, name="q")(layers.Subtract()([second, first]))]
    maker.model("two", maker.keras.Model([first, second], outputs))
    image = layers.Input((None, None, 1), name="image")
    maker.model("free", maker.keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))))


def single_operators(maker: Maker) -> None:
    """Operators that the converter or LiteRT treats in its own way."""
    tf, layers = maker.tf, maker.keras.layers
    ids = layers.Input((10,), dtype="int32", name="ids")
    pooled = layers.GlobalAveragePooling1D()(layers.Embedding(200, 16)(ids))
    maker.model("text_dynamic", maker.keras.Model(ids, layers.Dense(2, activation="softmax")(pooled)), "dynamic")
    volume = layers.Input((6, 6, 6, 8))
    maker.model("conv3d_dynamic", maker.keras.Model(volume, layers.Conv3D(16, 3)(volume)), "dynamic")
    features = layers.Input((64,))
    # Kernels of 1,024 and 240 elements.
    edge = layers.Dense(15)(layers.Dense(16, activation="relu")(features))
    maker.model("edge_dynamic", maker.keras.Model(features, edge), "dynamic")
    batch = tf.constant(maker.random.normal(size=(4, 64, 64)).astype("f"))
    maker.function("matmul_right_dynamic", lambda x: x @ batch, [4, 8, 64], "dynamic")
    maker.function("matmul_left_dynamic", lambda x: batch @ x, [4, 64, 8], "dynamic")
    maker.function("matmul_int8", lambda x: x @ batch, [4, 8, 64], "int8")
    maker.function("sine_int8", lambda x: tf.sin(x) @ batch[0], [1, 64], "int8")
    maker.function("custom", tf.math.erfinv, [1, 4], allow_custom_ops=True)
    select = tf.lite.TargetSpec(supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS])
    maker.function("flex", lambda x: tf.linalg.cholesky(tf.reshape(x, [2, 2])), [1, 4], target_spec=select)
    maker.function("not_finite", lambda x: tf.math.log(x), [None, 4])
    words = tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[tf.TensorSpec([None], tf.string, "x")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([words.get_concrete_function()], tf.Module())
    (maker.folder / "string.tflite").write_bytes(converter.convert())


def clustered(maker: Maker) -> None:
    """A network whose kernels share 8 values (`clusters.npz`), the first of them by channel; BatchNormalization scales
    every channel differently."""
    layers = maker.keras.layers
    image = layers.Input((12, 12, 3), name="image")
    x = layers.Conv2D(16, 3, use_bias=False, name="by_channel")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2DTranspose(8, 3, activation="relu", name="up")(layers.Conv2D(32, 3, name="whole")(x))
    x = layers.Dense(32, activation="relu", name="hidden")(layers.Flatten()(x))
    model = maker.keras.Model(image, layers.Dense(5, name="scores")(x))
    norm = model.get_layer("norm")
    norm.set_weights([maker.random.normal(1, 0.5, weight.shape) ** 2 + 0.1 for weight in norm.get_weights()])
    kernels = {}
    for name in ("by_channel", "up", "whole", "hidden"):
        kernel, *rest = model.get_layer(name).get_weights()
        parts = np.moveaxis(kernel, -1, 0) if name == "by_channel" else kernel[None]
        shared = np.stack([shared_values(part, 8) for part in parts])
        kernels[name] = np.moveaxis(shared, 0, -1) if name == "by_channel" else shared[0]
        model.get_layer(name).set_weights([kernels[name], *rest])
    np.savez(maker.folder / "clusters.npz", **kernels)
    for mode in ("float32", "float16", "dynamic", "int8"):
        maker.model(f"clustered_{mode}", model, mode)


def shared_values(values: np.ndarray, count: int) -> np.ndarray:
    """Gives every value as the nearest of `count` quantiles."""
    centres = np.quantile(values, (np.arange(count) + 0.5) / count).astype(values.dtype)
    return centres[np.abs(values[..., None] - centres).argmin(axis=-1)]


def integer_modes(maker: Maker) -> None:
    """Modes other than int8 with float ends: `wide_int16x8`, the same with float biases, and `wide_uint8_io`."""
    tf, layers = maker.tf, maker.keras.layers
    image = layers.Input((12, 12, 3), name="image")
    x = layers.Flatten()(layers.Conv2D(16, 3, activation="relu", bias_initializer="ones", name="first")(image))
    model = maker.keras.Model(image, layers.Dense(5, activation="softmax", bias_initializer="ones")(x))
    wide = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    settings = {
        "wide_int16x8": {"target_spec": tf.lite.TargetSpec(supported_ops=[wide])},
        "wide_int16x8_bias32": {
            "target_spec": tf.lite.TargetSpec(supported_ops=[wide]),
            "_experimental_full_integer_quantization_bias_type": tf.int32,
        },
        "wide_uint8_io": {"inference_input_type": tf.uint8, "inference_output_type": tf.uint8},
    }
    for name, values in settings.items():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        for key, value in values.items():
            setattr(converter, key, value)
        maker.write(name, converter, "int8", [(1, 12, 12, 3)])


def several_graphs(maker: Maker) -> None:
    """A condition; two signatures that share a matrix; a variable that is kept from call to call."""
    tf = maker.tf
    matrix = tf.constant(maker.random.normal(size=(4, 3)).astype("f"))
    maker.function("branch", lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: tf.sin(x), lambda: x * 2), [1, 4])
    module = tf.Module()
    module.sum = tf.Variable(tf.zeros((1, 4)), name="sum")
    spec = [tf.TensorSpec([1, 4], tf.float32, "x")]
    module.plain = tf.function(lambda x: {"y": x @ matrix}, input_signature=spec)
    module.twice = tf.function(lambda x: {"y": x @ matrix * 2, "z": tf.tanh(x)}, input_signature=spec)
    module.add = tf.function(lambda x: {"y": module.sum.assign_add(x) @ matrix}, input_signature=spec)
    for name, keys in (("signatures", ["plain", "twice"]), ("counting", ["add"])):
        folder = str(maker.folder / name)
        tf.saved_model.save(module, folder, signatures={key: getattr(module, key) for key in keys})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=keys)
        converter.experimental_enable_resource_variables = name == "counting"
        (maker.folder / f"{name}.tflite").write_bytes(converter.convert())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
