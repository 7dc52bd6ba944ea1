"""The engine of the workers that need TensorFlow. Named here, imported only in their children."""

from __future__ import annotations

from squeezeflow.core.engine import Engine


def tensorflow_engine(*techniques: str, packages: tuple[str, ...] = ()) -> Engine:
    """Gives the engine with TensorFlow, LiteRT and the worker's technique modules imported.

    Args:
        techniques: modules that the fork server imports besides modelkit.
        packages: distributions of those techniques that decide what a step produces.
    """
    return Engine(
        preload=("squeezeflow.modelkit.preload", *techniques),
        warm="squeezeflow.modelkit.warm:warm",
        packages=("tensorflow", "tf-keras", "keras", "numpy", "ai-edge-litert", *packages),
        env={"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"},
    )
