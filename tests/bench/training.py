"""Epochs of fine-tuning against the same fit in a script with TFMOT alone, and TFMOT's wrappers against a plain fit.

Every run is a process of its own; rounds are interleaved and the quickest epoch of all rounds counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tests.bench import fits
from tests.bench.inputs import FASHION, ROOT, model_and_data

ROUNDS = 3
TECHNIQUES = ("prune", "cluster-16", "cluster-256", "train_quantized")


def epoch_seconds(kind: str, technique: str, model: Path, data: Path) -> float:
    """Runs one fine-tuning and gives the seconds of its quickest epoch."""
    command = [sys.executable, "-m", "tests.bench.fits", kind, technique, str(model), str(data)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{command} failed: {run.stderr[-3000:]}")
    return float(run.stdout.split()[-1])


def measure() -> dict[str, dict[str, float]]:
    """Interleaves ours and the scripts."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as text:
        model, _ = model_and_data(Path(text))
        data = Path(text) / "images.npz"
        with np.load(FASHION) as arrays:
            images = arrays["x_train"][: fits.ROWS, ..., None] / np.float32(255)
            np.savez(data, x_train=images, y_train=arrays["y_train"][: fits.ROWS])
        wanted = [("script", "plain"), *((kind, name) for name in TECHNIQUES for kind in ("script", "ours"))]
        best: dict[tuple[str, str], float] = {}
        for _ in range(ROUNDS):
            for key in wanted:
                best[key] = min(best.get(key, float("inf")), epoch_seconds(*key, model, data))
    plain = best[("script", "plain")]
    for name in TECHNIQUES:
        bare, own = best[("script", name)], best[("ours", name)]
        rows[name] = {"script_epoch_s": bare, "epoch_s": own, "ratio": own / bare, "wrapper_to_plain": bare / plain}
    return {"plain": {"script_epoch_s": plain}, **rows}
