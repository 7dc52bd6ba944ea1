"""What a running fit tells: fraction, epoch, figures, time left; and the stop when its loss is not finite any more."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import tf_keras

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import Report

# Reading a figure waits for the step that computes it; more often than this nobody looks.
INTERVAL_SECONDS = 0.25


class FitProgress(tf_keras.callbacks.Callback):
    """Reports a fit through `Report` and raises NON_FINITE_OUTPUT at the first loss that is NaN or infinite.

    Args:
        report: where to.
        epochs, steps: epochs of the fit, and batches of one.
        span: the part of the step's fraction that the fit covers.
        names: prefixes of Keras figure names → the ones to report.
    """

    def __init__(
        self,
        report: Report,
        *,
        epochs: int,
        steps: int,
        span: tuple[float, float],
        names: Mapping[str, str],
    ) -> None:
        super().__init__()
        # Keras would otherwise turn the figures of every batch into numpy, which waits for the batch.
        self._supports_tf_logs = True
        self._report, self._epochs, self._steps = report, epochs, steps
        self._span, self._names = span, dict(names)
        self._epoch = 0
        self._last = -math.inf
        self._timed_from: tuple[int, float] | None = None

    def name_of(self, figure: str) -> str:
        """Gives the name under which a Keras figure is reported: the output's, not that of a layer's wrapper."""
        prefix = "val_" if figure.startswith("val_") else ""
        bare = figure.removeprefix("val_")
        for keras_prefix, reported in self._names.items():
            if bare.startswith(keras_prefix):
                return f"{prefix}{reported}{bare.removeprefix(keras_prefix)}"
        return figure

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reports at most every `INTERVAL_SECONDS`."""
        now = time.monotonic()
        if now - self._last < INTERVAL_SECONDS:
            return
        self._last = now
        self._tell(self._epoch * self._steps + batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Reports the epoch's figures, validation included."""
        self._tell((epoch + 1) * self._steps, logs)

    def _tell(self, done: int, logs: Any) -> None:
        # Epoch figures are plain numbers already, batch figures are tensors.
        figures = {self.name_of(name): float(value) for name, value in (logs or {}).items()}
        if not math.isfinite(figures.get("loss", 0.0)):
            raise SqueezeflowError(
                "NON_FINITE_OUTPUT",
                f"the loss is {figures['loss']} in epoch {self._epoch + 1} of {self._epochs}: lower "
                "fine_tune.learning_rate",
                metadata={"epoch": self._epoch + 1},
            )
        total = self._epochs * self._steps
        low, high = self._span
        self._report(
            low + (high - low) * done / total,
            "training",
            epoch=self._epoch + 1,
            metrics={name: value for name, value in figures.items() if math.isfinite(value)},
            eta_seconds=self._eta(done, total),
        )

    def _eta(self, done: int, total: int) -> float | None:
        """Gives the seconds left, by the pace since the first report: the first batch also traces the model."""
        now = time.monotonic()
        if self._timed_from is None:
            self._timed_from = (done, now)
            return None
        first, began = self._timed_from
        return (now - began) / (done - first) * (total - done) if done > first else None
