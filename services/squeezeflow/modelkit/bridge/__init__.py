"""From Keras 3 to tf_keras: what techniques that train can take.

TFMOT and the trainer work with tf_keras, which reads no Keras 3 file. So the graph is replayed on tf_keras layers of
the same settings, names and weights, and the twin is believed only once both give the same outputs.

layers      one Keras 3 layer → its tf_keras twin
activations activations that tf_keras has not, or has with other values
operations  `keras.ops` in a graph → tf_keras layers and TensorFlow functions; `call` is one use, `shapes` moves values
weights     values into the twin
replay      the graph; nested models stay nested
locate      the layer in which a twin is off
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from squeezeflow.core import figures, invariants
from squeezeflow.core.datasets import BoundData
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import proof
from squeezeflow.modelkit.bridge.locate import first_off
from squeezeflow.modelkit.bridge.replay import twin_of_model
from squeezeflow.modelkit.keras_source import KerasSource
from squeezeflow.modelkit.layers import walk
from squeezeflow.modelkit.source import Source

# Both libraries call the same kernels; only the order of sums may differ. Relative to the largest output.
EQUAL = 1e-5
# Where layers compute with half the bits, sums are rounded as often as they are written down.
EQUAL_HALF = 4e-3
# Deep models (MobileNetV2, V3) make more than that of the last bit of an input, and so of the order of sums: a twin may
# be off by so many times what one step of every input makes, and by no more than a thousandth.
SENSITIVE, EQUAL_SENSITIVE = 10.0, 1e-3
NOTE = (
    "read with Keras 3 and rebuilt in tf_keras, which training needs: same layers, names and weights; {}, largest "
    "relative difference {:.2g}"
)


def trainable(source: Source, technique: str, bound: BoundData | None = None) -> Source:
    """Gives a source whose `keras` is a tf_keras model: itself, or the tf_keras twin of a Keras 3 model.

    Args:
        technique: what wants to train it, for the message.
        bound: real samples to compare the twin on, besides random ones.

    Errors: UNSUPPORTED_INPUT for a SavedModel that is a graph, saying why, UNSUPPORTED_LAYER naming a layer that has no
    twin, OUTPUT_MISMATCH, NON_FINITE_OUTPUT where the model gave no numbers before.
    """
    if source.keras is not None:
        return source
    if source.model is None:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"{technique} trains Keras models, this one is a {source.format} without layers"
            f"{f' ({source.why_graph})' if source.why_graph else ''}: give the .keras or .h5 file that it was exported "
            "from",
            metadata={"format": source.format},
        )
    twin = KerasSource(
        twin_of_model(source.model),
        keras3=False,
        format=source.format,
        written_by=source.written_by,
        compiled=source.compile_config,
    )
    compared = [_compare(source, twin, None), *([_compare(source, twin, bound)] if bound is not None else [])]
    difference = max(difference for difference, _ in compared)
    note = NOTE.format(" and ".join(origin for _, origin in compared), difference)
    twin.notes = tuple(dict.fromkeys([*source.notes, *twin.notes, note]))
    return twin


def _compare(source: Source, twin: Source, bound: BoundData | None) -> tuple[float, str]:
    """Gives the largest difference of an output relative to its largest value, and where the samples were from."""
    samples, origin = proof.draw_samples(source.contract, bound, 0)
    expected, outputs = source.predict(samples), twin.predict(samples)
    invariants.require([invariants.finite(expected)])
    half = any(str(layer.compute_dtype) in ("float16", "bfloat16") for _, layer in walk(twin.keras))
    worst, limit = 0.0, EQUAL_HALF if half else EQUAL
    for name, values in expected.items():
        largest = float(np.abs(values).max(initial=0.0)) or 1.0
        found = outputs.get(name)
        same = found is not None and found.shape == values.shape
        difference = figures.max_abs_diff(values, found) / largest if same else float("inf")
        if not difference <= limit:
            limit = max(limit, min(EQUAL_SENSITIVE, SENSITIVE * _sensitivity(source, samples, name, values) / largest))
        if not difference <= limit:
            layer = first_off(source.model, twin.keras, samples, limit)
            raise SqueezeflowError(
                "OUTPUT_MISMATCH",
                f"output {name} of the model rebuilt in tf_keras differs from the Keras 3 model's by {difference:.3g} "
                f"of its largest value (limit {limit:g}, {origin})"
                f"{f', beginning with layer {layer}' if layer else ''}: save the model with tf_keras "
                "(TF_USE_LEGACY_KERAS=1) to train it",
                metadata={"output": name, "difference": difference, **({"layer": layer} if layer else {})},
            )
        worst = max(worst, difference)
    return worst, origin


def _sensitivity(source: Source, samples: Mapping[str, np.ndarray], output: str, values: np.ndarray) -> float:
    """Gives by how much an output changes where every float of the inputs becomes the next larger one."""
    nudged = {
        name: np.nextafter(array, np.full_like(array, np.inf)) if array.dtype.kind == "f" else array
        for name, array in samples.items()
    }
    return figures.max_abs_diff(values, source.predict(nudged)[output])
