"""Epochs of fine-tuning against the same fit in a script with TFMOT alone, and TFMOT's wrappers against a plain fit.

Every fit is a process of its own, and they take turns epoch by epoch: a machine that is slower now and quicker then is
so for all of them. A ratio is the median of those of neighbouring epochs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tests.bench import fits
from tests.bench.inputs import FASHION, ROOT, model_and_data

TECHNIQUES = ("prune", "cluster-16", "cluster-256", "train_quantized")


class Fit:
    """One fit, which waits for its turn after every epoch."""

    def __init__(self, kind: str, technique: str, model: Path, data: Path, log: Path) -> None:
        self._command = [sys.executable, "-m", "tests.bench.fits", kind, technique, str(model), str(data)]
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._told()

    def epoch(self) -> float:
        """Runs one epoch and gives its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._told()

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _told(self) -> float:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(fits.PREFIX):
                return float(line.removeprefix(fits.PREFIX))
        raise RuntimeError(f"{self._command} failed: {self._log.read_text()[-3000:]}")


def rounds(wanted: list[tuple[str, str]], model: Path, data: Path, folder: Path) -> list[list[float]]:
    """Gives the seconds of the epochs of several fits, side by side: one list a round."""
    running: list[Fit] = []
    try:
        for index, (kind, technique) in enumerate(wanted):
            running.append(Fit(kind, technique, model, data, folder / f"fit-{index}.log"))
        return [[fit.epoch() for fit in running] for _ in range(fits.EPOCHS - 1)]
    finally:
        for fit in running:
            fit.end()


def measure() -> dict[str, dict[str, float]]:
    """Measures each technique beside its script and a plain fit."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        model, _ = model_and_data(folder)
        data = folder / "images.npz"
        with np.load(FASHION) as arrays:
            images = arrays["x_train"][: fits.ROWS, ..., None] / np.float32(255)
            np.savez(data, x_train=images, y_train=arrays["y_train"][: fits.ROWS])
        for name in TECHNIQUES:
            taken = rounds([("script", "plain"), ("script", name), ("ours", name)], model, data, folder)
            rows[name] = {
                "epoch_s": statistics.median(own for _, _, own in taken),
                "ratio": statistics.median(own / bare for _, bare, own in taken),
                "wrapper_to_plain": statistics.median(bare / plain for plain, bare, _ in taken),
                "ours_to_plain": statistics.median(own / plain for plain, _, own in taken),
            }
    return rows
