"""The optimizers that fine-tuning offers, and which one a fit uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from squeezeflow.modelkit.compile_config import CompileConfig
from squeezeflow.v1 import technique_pb2

# Keras name → class in `tf_keras.optimizers`.
OPTIMIZERS = {
    "adam": "Adam",
    "adamw": "AdamW",
    "sgd": "SGD",
    "rmsprop": "RMSprop",
    "nadam": "Nadam",
    "adagrad": "Adagrad",
    "adamax": "Adamax",
}
DEFAULT_OPTIMIZER, DEFAULT_LEARNING_RATE = "adam", 1e-3


@dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer, its learning rate, and where both are from, for a person."""

    name: str
    learning_rate: float
    note: str


def choose_optimizer(request: technique_pb2.FineTune, compiled: CompileConfig) -> OptimizerChoice:
    """Decides optimizer and learning rate: the request, then the compile configuration, then Adam at 0.001."""
    if request.optimizer:
        name, why = request.optimizer, "the request"
    elif compiled.optimizer in OPTIMIZERS:
        name, why = compiled.optimizer, "the compile configuration"
    else:
        name, why = DEFAULT_OPTIMIZER, "default"
    if request.HasField("learning_rate"):
        rate, rate_why = request.learning_rate, "the request"
    elif compiled.learning_rate and compiled.optimizer in ("", name):
        # A rate belongs to its optimizer: one of SGD would ruin Adam.
        rate, rate_why = compiled.learning_rate, "the compile configuration"
    else:
        rate, rate_why = DEFAULT_LEARNING_RATE, "default"
    return OptimizerChoice(name, rate, f"optimizer {name} ({why}), learning_rate {rate:g} ({rate_why})")


def make_optimizer(name: str, learning_rate: float) -> Any:
    """Gives the tf_keras optimizer."""
    import tf_keras

    return getattr(tf_keras.optimizers, OPTIMIZERS[name])(learning_rate=learning_rate)
