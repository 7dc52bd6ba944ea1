"""Trains one model of `make bench-techniques` as a user would have it: `python train.py MODEL SEED FOLDER`.

Writes `model.keras` (compiled) and `data.npz`. `fashion` is the demo's small CNN on Fashion-MNIST; `vowels-conv` and
`vowels-lstm` are a Conv2D net on 29×12×1 and an LSTM, both on Japanese Vowels.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tf_keras

ROOT = Path(__file__).resolve().parents[3]
SPEAKERS = 9
FRAMES, COEFFICIENTS = 29, 12


def fashion() -> tf_keras.Model:
    """Gives the demo's CNN, about 100,000 parameters."""
    sys.path.insert(0, str(ROOT))
    from tests.demo import train

    return train.build()


def vowels_conv() -> tf_keras.Model:
    """Gives a Conv2D net with BatchNormalization on frames × coefficients, about 30,000 parameters."""
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input((FRAMES, COEFFICIENTS, 1), name="frames"),
            layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv_1"),
            layers.BatchNormalization(name="norm_1"),
            layers.ReLU(name="relu_1"),
            layers.MaxPooling2D(2, name="pool_1"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_2"),
            layers.MaxPooling2D(2, name="pool_2"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.3, name="dropout"),
            layers.Dense(40, activation="relu", name="hidden"),
            layers.Dense(SPEAKERS, activation="softmax", name="speaker"),
        ],
        name="vowels_conv",
    )


def vowels_lstm() -> tf_keras.Model:
    """Gives an LSTM over the frames, about 15,000 parameters."""
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input((FRAMES, COEFFICIENTS), name="frames"),
            layers.LSTM(48, name="lstm"),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dense(SPEAKERS, activation="softmax", name="speaker"),
        ],
        name="vowels_lstm",
    )


def fashion_data() -> tuple[dict[str, np.ndarray], float]:
    """Gives uint8 images and labels, and what their values are multiplied with."""
    with np.load(ROOT / "tests/data/fashion_mnist.npz") as source:
        return {name: source[name] for name in ("x_train", "y_train", "x_test", "y_test")}, 1 / 255


def vowels_data() -> tuple[dict[str, np.ndarray], float]:
    """Gives series of frames, as published."""
    with np.load(ROOT / "tests/data/japanese_vowels.npz") as source:
        return {name: source[name] for name in ("x_train", "y_train", "x_test", "y_test")}, 1.0


MODELS = {
    "fashion": (fashion, fashion_data, 16, 32),
    "vowels-conv": (vowels_conv, vowels_data, 60, 16),
    "vowels-lstm": (vowels_lstm, vowels_data, 80, 16),
}


def main(name: str, seed: int, folder: Path) -> None:
    """Trains and writes model and data."""
    build, load, epochs, batch = MODELS[name]
    tf_keras.utils.set_random_seed(seed)
    arrays, scale = load()
    model = build()
    x = arrays["x_train"].astype(np.float32) * np.float32(scale)
    model.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    rank = len(model.input_shape)
    model.fit(x[..., None] if x.ndim < rank else x, arrays["y_train"], batch_size=batch, epochs=epochs, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
