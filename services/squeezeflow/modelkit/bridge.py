"""From Keras 3 to tf_keras: what techniques that train can take."""

from __future__ import annotations

from squeezeflow.core.datasets import BoundData
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit.source import Source


def trainable(source: Source, technique: str, bound: BoundData | None = None) -> Source:
    """Gives a source whose `keras` is a tf_keras model: itself, or the tf_keras twin of a Keras 3 model.

    Args:
        technique: what wants to train it, for the message.
        bound: real samples to compare the twin on, besides random ones.

    Errors: UNSUPPORTED_INPUT for a SavedModel, UNSUPPORTED_LAYER naming a layer that has no twin, OUTPUT_MISMATCH.
    """
    if source.keras is not None:
        return source
    raise SqueezeflowError(
        "UNSUPPORTED_INPUT",
        f"{technique} trains Keras models, this one is a {source.format} without layers: give the .keras or .h5 file "
        "that it was exported from",
        metadata={"format": source.format},
    )
