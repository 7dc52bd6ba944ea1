"""One call of an operation of Keras 3, on tensors of tf_keras."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tf_keras.src.engine.keras_tensor import KerasTensor
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda


@dataclass(frozen=True)
class Call:
    """One call of an operation.

    Attributes:
        operation: of Keras 3; its settings are attributes.
        given: arguments by the names that `operation.call` has for them; symbolic tensors are tf_keras's.
        dtype: of the result.
        shape: of the result, with None for free axes.
        unique: makes names of further layers unique.
    """

    operation: Any
    given: Mapping[str, Any]
    dtype: str
    shape: tuple[int | None, ...]
    unique: Callable[[str], str]

    @property
    def name(self) -> str:
        """The name that the layer gets which gives the result."""
        return str(self.operation.name)

    @property
    def named(self) -> dict[str, Any]:
        """The name and type of the layer that stands for the operation."""
        return {"name": self.name, "dtype": self.dtype}

    def values(self) -> list[Any]:
        """Gives the arguments in their order."""
        return list(self.given.values())

    def cast(self, value: Any, dtype: str) -> Any:
        """Gives an argument in a type: a symbolic tensor through a layer, a constant as it would be there."""
        if not is_symbolic(value):
            return constant(value, dtype)
        if value.dtype.name == dtype:
            return value
        return TFOpLambda(tf.cast, name=self.unique(f"{self.name}_cast"))(value, dtype)

    def function(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a TensorFlow function by the operation's name."""
        return TFOpLambda(function, name=self.name)(*args, **kwargs)


def is_symbolic(value: Any) -> bool:
    """Says whether a value is a tensor of the graph that is built."""
    return isinstance(value, KerasTensor)


def constant(value: Any, dtype: str) -> Any:
    """Gives a constant in a type, as something that a configuration can hold."""
    array = np.asarray(keras.ops.convert_to_numpy(value) if hasattr(value, "dtype") else value)
    return array.astype("float32" if dtype == "bfloat16" else dtype).tolist()
