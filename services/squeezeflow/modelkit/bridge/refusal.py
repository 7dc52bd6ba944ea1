"""What is said where the bridge ends."""

from __future__ import annotations

from typing import Any

from squeezeflow.core.errors import SqueezeflowError


def refusal(layer: Any, why: str) -> SqueezeflowError:
    """Gives the typed error for a Keras 3 layer or operation that has no twin in tf_keras."""
    name = type(layer).__name__
    return SqueezeflowError(
        "UNSUPPORTED_LAYER",
        f"layer {layer.name} ({name}) of this Keras 3 model cannot be rebuilt in tf_keras, which training needs: {why}",
        metadata={"layer": layer.name, "class_name": name},
    )
