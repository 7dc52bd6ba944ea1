"""Random layers (dropout, noise, augmentation) whose draws depend on the seed and the epoch alone.

TensorFlow's stateful random ops count their calls inside the process, so a fit that goes on in another one would draw
something else; and to set the global seed anew at every epoch makes TensorFlow instantiate the train function again
(seen: 0.09 s for a small CNN, 2.7 s for a MobileNetV2). So the layers get a `tf.random.Generator` each, which is set
anew at every epoch, and after the fit what they had before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras


class EpochSeeds(tf_keras.callbacks.Callback):
    """Sets generators anew at the begin of every epoch, by (seed, epoch, place of the layer)."""

    def __init__(self, generators: list[tf.random.Generator], seed: int) -> None:
        super().__init__()
        self.generators, self._seed = generators, seed

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets every generator."""
        for index, generator in enumerate(self.generators):
            drawn = np.random.default_rng([self._seed, epoch, index]).integers(1 << 62)
            generator.reset_from_seed(int(drawn))


@contextmanager
def epoch_seeds(model: tf_keras.Model, seed: int) -> Iterator[EpochSeeds]:
    """Gives the random layers of a model generators of their own while the context lasts.

    A seed that a layer brings itself is not used. Nothing of the model may have been traced for training before.
    """
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "_random_generator", None) is not None]
    before = [layer._random_generator for layer in layers]
    generators = []
    for layer in layers:
        ours = type(layer._random_generator)(seed, rng_type="stateful")
        ours._generator, ours._built = tf.random.Generator.from_seed(seed, alg="philox"), True
        vars(layer)["_random_generator"] = ours  # past Keras' tracking, for it is not to stay
        generators.append(ours._generator)
    try:
        yield EpochSeeds(generators, seed)
    finally:
        for layer, theirs in zip(layers, before, strict=True):
            vars(layer)["_random_generator"] = theirs
