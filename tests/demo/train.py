"""Trains the demo's model: a small CNN on Fashion-MNIST with tf_keras, as a user would have it.

Writes `model.keras` (compiled: loss and optimizer stand in it) and `data.npz` (uint8 images, labels, class names).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tf_keras

SOURCE = Path(__file__).resolve().parents[1] / "data" / "fashion_mnist.npz"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
EPOCHS = 16


def build() -> tf_keras.Model:
    """Gives a CNN of about 100,000 parameters."""
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Input((28, 28, 1), name="image"),
            layers.Conv2D(16, 3, activation="relu", name="conv_1"),
            layers.MaxPooling2D(name="pool_1"),
            layers.Conv2D(32, 3, activation="relu", name="conv_2"),
            layers.MaxPooling2D(name="pool_2"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.25, name="dropout"),
            layers.Dense(112, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="label"),
        ],
        name="fashion",
    )
    model.compile(
        optimizer=tf_keras.optimizers.Adam(1e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return model


def main(folder: Path) -> None:
    """Trains, writes model and data, and prints the accuracy on the test images."""
    tf_keras.utils.set_random_seed(0)
    with np.load(SOURCE) as source:
        arrays = {name: source[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    images = {name: arrays[name][..., None] / np.float32(255) for name in ("x_train", "x_test")}
    model = build()
    model.fit(images["x_train"], arrays["y_train"], batch_size=32, epochs=EPOCHS, verbose=0)
    accuracy = model.evaluate(images["x_test"], arrays["y_test"], batch_size=1000, verbose=0)[1]
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", classes=np.array(CLASSES), **arrays)
    print(
        f"trained {model.count_params():,} parameters for {EPOCHS} epochs: accuracy {accuracy:.4f} on the test images"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
