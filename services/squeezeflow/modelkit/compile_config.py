"""How a model was compiled, read from its file without running anything of it.

Fine-tuning falls back on it. Whatever is not a plain, known form (a schedule, a list of losses, a custom object) is
left out: then the caller says it, or it is inferred.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CompileConfig:
    """What a file says about training.

    Attributes:
        loss: Keras function name, `sparse_categorical_crossentropy`; empty where the file does not tell.
        from_logits: None where the file does not tell.
        optimizer: lower-case Keras name, `adam`; empty where the file does not tell.
        learning_rate: None where the file does not tell, or where it is a schedule.
    """

    loss: str = ""
    from_logits: bool | None = None
    optimizer: str = ""
    learning_rate: float | None = None


def read(config: Any) -> CompileConfig:
    """Reads `compile_config` of a `.keras` file or `training_config` of an HDF5 file; anything else is empty."""
    if not isinstance(config, dict):
        return CompileConfig()
    loss, from_logits = _loss(config.get("loss"))
    name, learning_rate = _optimizer(config.get("optimizer") or config.get("optimizer_config"))
    return CompileConfig(loss, from_logits, name, learning_rate)


def _loss(value: Any) -> tuple[str, bool | None]:
    # One output in a list or dict of one is the common form of models with a named output.
    if isinstance(value, list) and len(value) == 1:
        return _loss(value[0])
    if isinstance(value, dict) and "class_name" not in value and len(value) == 1:
        return _loss(next(iter(value.values())))
    if isinstance(value, str):
        return _snake(value), False if _snake(value).endswith("crossentropy") else None
    if isinstance(value, dict):
        if value.get("class_name") == "function" and isinstance(value.get("config"), str):
            return _loss(value["config"])
        options = value.get("config")
        if isinstance(value.get("class_name"), str) and isinstance(options, dict):
            from_logits = options.get("from_logits")
            return _snake(value["class_name"]), from_logits if isinstance(from_logits, bool) else None
    return "", None


def _optimizer(value: Any) -> tuple[str, float | None]:
    if isinstance(value, str):
        return value.lower(), None
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        return "", None
    name = value["class_name"].rsplit(">", 1)[-1].lower()
    options = value.get("config")
    rate = (options.get("learning_rate", options.get("lr")) if isinstance(options, dict) else None) or None
    return name, float(rate) if isinstance(rate, (int, float)) and not isinstance(rate, bool) else None


def _snake(name: str) -> str:
    """Gives `SparseCategoricalCrossentropy` as `sparse_categorical_crossentropy`, and the short names in full."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return {"mse": "mean_squared_error", "mae": "mean_absolute_error"}.get(name, name)
