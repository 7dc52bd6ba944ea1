"""Names the layer in which a twin begins to compute something else than the Keras 3 model that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tf_keras


def first_off(model: Any, twin: Any, samples: Mapping[str, np.ndarray], limit: float) -> str:
    """Gives the first layer whose output differs by more than `limit` of its largest value; empty: it cannot be told.

    Args:
        model, twin: the Keras 3 model and the tf_keras model; layers have the same names.
        samples: inputs by name.
    """
    try:
        names = [layer.name for layer in model.layers if len(keras.tree.flatten(_outputs(layer))) == 1]
        both = zip(names, _values(keras, model, names, samples), _values(tf_keras, twin, names, samples), strict=True)
        for name, expected, found in both:
            difference = float(np.abs(expected - found).max(initial=0.0))
            if not difference <= limit * (float(np.abs(expected).max(initial=0.0)) or 1.0):
                return name
    except Exception:
        # Whatever it is (layers used twice in other orders, subclassed ones): the refusal stands without it.
        return ""
    return ""


def _values(library: Any, model: Any, names: list[str], samples: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    outputs = [keras.tree.flatten(_outputs(model.get_layer(name)))[0] for name in names]
    every = library.Model(model.inputs, outputs)
    given = [samples[tensor.name.partition(":")[0]] for tensor in model.inputs]
    return [np.asarray(value, np.float64) for value in every(given, training=False)]


def _outputs(layer: Any) -> Any:
    """Gives what a layer's first use gives."""
    return layer._inbound_nodes[0].outputs
