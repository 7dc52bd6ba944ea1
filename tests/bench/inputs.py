"""The model and the data that benchmarks run on: a small CNN, briefly trained, and Fashion-MNIST."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FASHION = ROOT / "tests" / "data" / "fashion_mnist.npz"

_TRAIN = """
import sys
import tests.models as models
import numpy as np
data = np.load(sys.argv[2])
model = models.tf_keras_cnn(dense=128)
models.compile_adam(model, "sparse_categorical_crossentropy", learning_rate=0.001)
model.fit(data["x_train"][..., None] / np.float32(255), data["y_train"], batch_size=64, epochs=1, verbose=0)
model.save(sys.argv[1])
"""


# How many samples of 64×64 make the bare script calibrate for more than 5 s.
FACES = 1500


def large_model_and_data(folder: Path) -> tuple[Path, Path]:
    """Gives a published mini-Xception and writes `faces.npz` (random images, enough to calibrate for seconds)."""
    data = folder / "faces.npz"
    generator = np.random.default_rng(0)
    np.savez(data, x_train=generator.uniform(-1, 1, (FACES, 64, 64, 1)).astype(np.float32))
    return ROOT / "tests" / "data" / "models" / "fer" / "emotion_model.hdf5", data


def model_and_data(folder: Path) -> tuple[Path, Path]:
    """Writes `model.keras` and `data.npz` (uint8 images, labels) below the folder and gives both paths."""
    model, data = folder / "model.keras", folder / "data.npz"
    with np.load(FASHION) as arrays:
        np.savez(data, **{name: arrays[name] for name in arrays.files})
    subprocess.run([sys.executable, "-c", _TRAIN, model, data], cwd=ROOT, check=True, capture_output=True)
    return model, data
