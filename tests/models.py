"""Small real models and malicious samples, made on the spot and written to a folder.

Functions that take a folder write one model into it and give its path. Weights come from a fixed seed. The malicious
samples carry a harmless payload: they would write the marker file that the caller names, so that a test can prove
that nothing of them ran.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

CLASSES = 10
# Where an HDF5 file of the CNN keeps the kernel of its last layer.
LINKED = "model_weights/probabilities/probabilities/kernel:0"


def tf_keras_cnn(*, dense: int = 32, batch_norm: bool = True) -> Any:
    """Gives a tf_keras image classifier, input `image` (28, 28, 1), softmax over 10 classes."""
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    layers = tf_keras.layers
    inputs = tf_keras.Input((28, 28, 1), name="image")
    x = layers.Conv2D(8, 3, strides=2, use_bias=not batch_norm, name="conv")(inputs)
    if batch_norm:
        x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2D(16, 3, strides=2, activation="relu", name="conv_2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(dense, activation="relu", name="dense")(x)
    outputs = layers.Dense(CLASSES, activation="softmax", name="probabilities")(x)
    return tf_keras.Model(inputs, outputs, name="cnn")


def tf_keras_file(folder: Path, *, name: str = "model.keras", compiled: bool = False, **options: Any) -> Path:
    """Writes the tf_keras CNN as `.keras` or `.h5`, by the suffix of `name`."""
    model = tf_keras_cnn(**options)
    if compiled:
        compile_adam(model, "sparse_categorical_crossentropy", learning_rate=0.002)
    return save(model, folder / name)


def compile_adam(model: Any, loss: Any, *, learning_rate: float) -> None:
    """Compiles a tf_keras model with Adam."""
    import tf_keras

    model.compile(tf_keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])


def save(model: Any, path: Path) -> Path:
    """Writes a Keras model of either library; without a suffix, a SavedModel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        model.save(str(path))
    else:
        model.export(str(path))
    return path


def keras3_cnn() -> Any:
    """Gives a Keras 3 image classifier, input `image` (28, 28, 1), softmax over 10 classes."""
    import keras

    keras.utils.set_random_seed(7)
    layers = keras.layers
    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Conv2D(8, 3, strides=2, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(16, 3, strides=2, activation="relu", name="conv_2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(CLASSES, activation="softmax", name="probabilities")(x)
    return keras.Model(inputs, outputs, name="cnn")


def keras3_file(folder: Path, *, name: str = "model.keras") -> Path:
    """Writes the Keras 3 CNN as `.keras` or `.h5`, by the suffix of `name`."""
    return save(keras3_cnn(), folder / name)


def keras3_two_outputs(folder: Path) -> Path:
    """Writes a Keras 3 model with two inputs and two outputs of the same shapes, to be told apart by their values."""
    import keras

    keras.utils.set_random_seed(7)
    zeta, alpha = keras.Input((6,), name="zeta"), keras.Input((6,), name="alpha")
    merged = keras.layers.Concatenate()([keras.layers.Dense(5, activation="tanh")(zeta), alpha])
    outputs = [keras.layers.Dense(4, name="second")(merged), keras.layers.Dense(4, name="first")(merged)]
    return save(keras.Model([zeta, alpha], outputs), folder / "two_outputs.keras")


def two_inputs_file(folder: Path, *, name: str = "two_inputs.keras") -> Path:
    """Writes a tf_keras model whose two inputs have the same shape and whose names are not in alphabetical order."""
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    layers = tf_keras.layers
    zeta, alpha = tf_keras.Input((6,), name="zeta"), tf_keras.Input((6,), name="alpha")
    merged = layers.Concatenate()([layers.Dense(5, activation="tanh")(zeta), alpha])
    outputs = [layers.Dense(4, name="second")(merged), layers.Dense(4, name="first")(merged)]
    return save(tf_keras.Model([zeta, alpha], outputs, name="two"), folder / name)


def recurrent_file(folder: Path, *, cell: str = "LSTM", batch: int | None = None) -> Path:
    """Writes a tf_keras sequence classifier; its batch axis is free unless `batch` fixes it."""
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    inputs = tf_keras.Input((12, 3), batch_size=batch, name="sequence")
    x = getattr(tf_keras.layers, cell)(5, name="cell")(inputs)
    outputs = tf_keras.layers.Dense(4, activation="softmax", name="label")(x)
    return save(tf_keras.Model(inputs, outputs), folder / f"{cell.lower()}.keras")


def saved_model(folder: Path) -> Path:
    """Writes the tf_keras CNN as a SavedModel with one signature."""
    return save(tf_keras_cnn(), folder / "saved_model")


def _function_model(folder: Path, functions: dict[str, Any], **state: Any) -> Path:
    """Writes a tf.Module whose signatures are the given tf.functions."""
    import tensorflow as tf

    module = tf.Module()
    for name, value in state.items():
        setattr(module, name, value)
    folder.mkdir(parents=True, exist_ok=True)
    tf.saved_model.save(module, str(folder), signatures=functions)
    return folder


def two_signatures(folder: Path) -> Path:
    """Writes a tf.function SavedModel with the signatures `scale` (a · 3) and `swap` (a − 3b and a + 3b)."""
    import tensorflow as tf

    factor = tf.Variable(tf.fill((4,), 3.0))

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="a")])
    def scale(a: Any) -> Any:
        return {"scaled": a * factor}

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="b"), tf.TensorSpec((None, 4), name="a")])
    def swap(b: Any, a: Any) -> Any:
        return {"total": a + b * factor, "difference": a - b * factor}

    return _function_model(folder / "two_signatures", {"scale": scale, "swap": swap}, factor=factor)


def string_input(folder: Path) -> Path:
    """Writes a SavedModel that takes text."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="text")])
    def length(text: Any) -> Any:
        return {"length": tf.cast(tf.strings.length(text), tf.float32)}

    return _function_model(folder / "string_input", {"serving_default": length})


def needs_flex(folder: Path) -> Path:
    """Writes a SavedModel whose only operation has no TFLite kernel."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 4, 4), tf.float32, name="matrix")])
    def inverse(matrix: Any) -> Any:
        return {"inverse": tf.linalg.inv(matrix + 4.0 * tf.eye(4))}

    return _function_model(folder / "needs_flex", {"serving_default": inverse})


def gives_nan(folder: Path) -> Path:
    """Writes a SavedModel whose output is NaN for every input."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def root(x: Any) -> Any:
        return {"root": tf.sqrt(-1.0 - tf.square(x))}

    return _function_model(folder / "gives_nan", {"serving_default": root})


def lambda_layer(folder: Path, marker: Path, *, name: str = "lambda.keras") -> Path:
    """Writes a tf_keras model whose Lambda layer writes `marker` when it runs; the marker is gone afterwards."""
    import tf_keras

    # The file keeps the bytecode of the body, not its closure: the path has to be a constant in it.
    body = eval(f"lambda x: (open({str(marker)!r}, 'a').write('ran'), x * 2.0)[1]")
    inputs = tf_keras.Input((4,), name="x")
    outputs = tf_keras.layers.Lambda(body, name="payload")(inputs)
    path = save(tf_keras.Model(inputs, outputs, name="evil"), folder / name)
    marker.unlink(missing_ok=True)
    return path


def edit_config(source: Path, target: Path, change: Any) -> Path:
    """Copies a `.keras` archive with its config.json passed through `change` (dict → None or dict)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            data = old.read(member)
            if member == "config.json":
                config = json.loads(data)
                data = json.dumps(change(config) or config).encode()
            new.writestr(member, data)
    return target


def gadget_config(folder: Path, marker: Path, *, name: str = "gadget.keras") -> Path:
    """Writes a `.keras` whose model class is in a module that lies beside it; importing that module writes `marker`.

    The payload works only where `folder` is on the import path.
    """
    (folder / "gadget_module.py").write_text(f"open({str(marker)!r}, 'a').write('ran')\n")

    def change(config: dict[str, Any]) -> None:
        config.update(module="gadget_module", class_name="Gadget", registered_name="Gadget")

    source = tf_keras_file(folder, name="gadget_source.keras")
    return edit_config(source, folder / name, change)


def writes_file_at_load(folder: Path, marker: Path) -> Path:
    """Writes a SavedModel whose resource initialiser writes `marker` as soon as it is loaded."""
    import tensorflow as tf
    from tensorflow.python.trackable.resource import CapturableResource

    class Payload(CapturableResource):
        def _create_resource(self) -> Any:
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.int64, value_dtype=tf.int64, shared_name="payload")

        def _initialize(self) -> Any:
            tf.io.write_file(str(marker), "ran")
            return tf.constant(0)

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def double(x: Any) -> Any:
        return {"y": x * 2.0}

    path = _function_model(folder / "writes_file", {"serving_default": double}, payload=Payload())
    marker.unlink(missing_ok=True)
    return path


def calls_python(folder: Path, marker: Path) -> Path:
    """Writes a SavedModel whose signature calls back into Python."""
    import tensorflow as tf

    def payload(x: Any) -> Any:
        marker.write_text("ran")
        return np.asarray(x) * 2.0

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def call(x: Any) -> Any:
        y = tf.numpy_function(payload, [x], tf.float32)
        return {"y": tf.ensure_shape(y, (None, 4))}

    return _function_model(folder / "calls_python", {"serving_default": call})


def damaged(source: Path, target: Path, *, offset: int, bit: int = 0) -> Path:
    """Copies a file with one bit flipped."""
    data = bytearray(source.read_bytes())
    data[offset] ^= 1 << bit
    target.write_bytes(bytes(data))
    return target


def truncated(source: Path, target: Path, *, keep: float = 0.5) -> Path:
    """Copies the first part of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * keep)])
    return target


def gadget(folder: Path, marker: Path) -> dict[str, Any]:
    """Gives a configuration that names a function of a module in `folder`; importing that module writes `marker`.

    The payload works only where `folder` is on the import path.
    """
    (folder / "gadget_function.py").write_text(f"open({str(marker)!r}, 'a').write('ran')\ndef call(x): return x\n")
    return {"module": "gadget_function", "class_name": "function", "config": "call", "registered_name": "function"}


def gadget_in(folder: Path, marker: Path, place: str, *, name: str = "gadget_in.keras") -> Path:
    """Writes a `.keras` with `gadget` in one place: an argument of a dense layer, or a key of `compile_config`."""
    payload = gadget(folder, marker)

    def change(config: dict[str, Any]) -> None:
        if place == "loss":
            config["compile_config"] = {"optimizer": "adam", "loss": payload}
        else:
            layers = config["config"]["layers"]
            next(layer for layer in layers if layer["config"]["name"] == "dense")["config"][place] = payload

    return edit_config(tf_keras_file(folder, name="gadget_in_source.keras"), folder / name, change)


def lambda_saved_model(folder: Path, marker: Path) -> Path:
    """Writes a SavedModel as tf_keras does, the bytecode of a Lambda layer that writes `marker` beside the graph."""
    import tf_keras

    body = eval(f"lambda x: (open({str(marker)!r}, 'a').write('ran'), x * 2.0)[1]")
    inputs = tf_keras.Input((4,), name="x")
    model = tf_keras.Model(inputs, tf_keras.layers.Lambda(body, name="payload")(inputs), name="evil")
    model.save(str(folder / "lambda_saved_model"), save_format="tf")
    marker.unlink(missing_ok=True)
    return folder / "lambda_saved_model"


def reads_other_file(folder: Path, secret: Path) -> Path:
    """Writes a Keras HDF5 file one of whose kernels is a link to the same place in the HDF5 file `secret`, all 7."""
    import h5py

    path = tf_keras_file(folder, name="linked.h5")
    with h5py.File(path, "a") as file, h5py.File(secret, "w") as other:
        other[LINKED] = np.full(file[LINKED].shape, 7.0, "f")
        del file[LINKED]
        file[LINKED] = h5py.ExternalLink(str(secret), f"/{LINKED}")
    return path


def keras_saved_model(model: Any, folder: Path, **signatures: Any) -> Path:
    """Writes a tf_keras model as a SavedModel with its Keras metadata; without signatures, with Keras' own."""
    model.save(str(folder), save_format="tf", signatures=signatures or None)
    return folder


def edit_metadata(source: Path, target: Path, change: Any) -> Path:
    """Copies a Keras SavedModel with the JSON of every Keras object passed through `change` (node, dict → None)."""
    from tf_keras.protobuf import saved_metadata_pb2

    shutil.copytree(source, target)
    metadata = saved_metadata_pb2.SavedMetadata()
    metadata.ParseFromString((source / "keras_metadata.pb").read_bytes())
    for node in metadata.nodes:
        config = json.loads(node.metadata)
        change(node.node_id, config)
        node.metadata = json.dumps(config)
    (target / "keras_metadata.pb").write_bytes(metadata.SerializeToString())
    return target


def free_size_file(folder: Path, *, name: str = "free.keras") -> Path:
    """Writes a tf_keras classifier of 3 classes for images of any height and width, 3 channels, input `image`."""
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    layers = tf_keras.layers
    inputs = tf_keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = layers.Conv2D(64, 3, activation="relu", name="wide")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return save(tf_keras.Model(inputs, layers.Dense(3, activation="softmax", name="label")(x)), folder / name)


def attention_file(folder: Path, *, name: str = "attention.keras") -> Path:
    """Writes a tf_keras sequence classifier of 4 classes with both kinds of attention, input `steps` (12, 16)."""
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    layers = tf_keras.layers
    inputs = tf_keras.Input((12, 16), name="steps")
    x = layers.Dense(32, activation="relu", name="embed")(inputs)
    heads = layers.MultiHeadAttention(2, 16, name="heads")(x, x)
    x = layers.Add(name="skip")([x, heads])
    x = layers.Attention(name="attention")([x, x])
    x = layers.Dense(32, activation="relu", name="mixed")(layers.GlobalAveragePooling1D(name="pool")(x))
    return save(tf_keras.Model(inputs, layers.Dense(4, activation="softmax", name="label")(x)), folder / name)


def many_kinds_file(folder: Path, *, name: str = "many_kinds.keras") -> Path:
    """Writes a tf_keras model of every common kernel: ids and an image in, class (3) and number out, a shared layer."""
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    layers = tf_keras.layers
    ids, image = tf_keras.Input((10,), dtype="int32", name="ids"), tf_keras.Input((8, 8, 2), name="image")
    words = layers.Conv1D(16, 3, activation="relu", name="words")(layers.Embedding(50, 16, name="table")(ids))
    pixels = layers.SeparableConv2D(16, 3, activation="relu", name="separable")(image)
    pixels = layers.Conv2DTranspose(8, 3, strides=2, activation="relu", name="up")(pixels)
    pixels = layers.Conv2D(16, 3, activation="relu", name="pixels")(pixels)
    volume = layers.Conv3D(8, (3, 3, 2), activation="relu", name="volume")(layers.Reshape((8, 8, 2, 1))(image))
    shared = layers.Dense(16, activation="relu", name="shared")
    parts = [shared(layers.GlobalAveragePooling1D()(words)), shared(layers.GlobalAveragePooling2D()(pixels))]
    x = layers.Concatenate(name="parts")([*parts, layers.GlobalAveragePooling3D()(volume)])
    outputs = [layers.Dense(3, activation="softmax", name="kind")(x), layers.Dense(1, name="number")(x)]
    return save(tf_keras.Model([ids, image], outputs), folder / name)
