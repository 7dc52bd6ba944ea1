"""TensorBoard event files of a pruning: sparsity and threshold of every kernel by training step.

The tags and values of TFMOT's `PruningSummaries`, which writes once an epoch, never after the last one, and only where
TensorBoard itself is installed; TensorFlow alone can write them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.core.framework import summary_pb2
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import collect_prunable_layers

# Steps that are written, however many there are: the files stay small.
POINTS = 100


class Summaries(tf_keras.callbacks.Callback):
    """Writes about `POINTS` steps, the last one among them.

    Args:
        folder: is made.
        steps: of the whole fit.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__()
        self._folder = folder
        self._every = max(1, steps // POINTS)
        self._written = -1

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Opens the event file."""
        self._layers = collect_prunable_layers(self.model)
        self._writer = tf.summary.create_file_writer(str(self._folder))

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Writes every so many steps."""
        if self._step() % self._every == 0:
            self._write()

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Writes the last step, and closes the file."""
        if self._step() != self._written:
            self._write()
        self._writer.close()
        anonymous(self._folder)

    def _step(self) -> int:
        return int(self.model.optimizer.iterations)

    def _write(self) -> None:
        self._written = self._step()
        with self._writer.as_default(step=self._written):
            for layer in self._layers:
                for _, mask, threshold in layer.pruning_vars:
                    _scalar(f"{mask.name}/sparsity", 1 - np.mean(mask.numpy()))
                    _scalar(f"{threshold.name}/threshold", threshold.numpy())


def _scalar(tag: str, value: float) -> None:
    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars"),
        data_class=summary_pb2.DATA_CLASS_SCALAR,
    )
    tf.summary.write(tag, tf.constant(value, tf.float32), metadata=metadata)


def anonymous(folder: Path) -> None:
    """Renames event files so that they do not tell on which machine, when and in which process they were written."""
    for index, path in enumerate(sorted(folder.glob("events.out.tfevents.*"))):
        path.rename(folder / f"events.out.tfevents.{index}")
