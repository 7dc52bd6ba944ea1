"""What the fork server of a TensorFlow worker imports. Imports only: one TensorFlow operation run here, and every child
hangs."""

from __future__ import annotations

import ai_edge_litert.interpreter
import ai_edge_litert.schema_py_generated
import h5py
import keras
import tensorflow
import tf_keras

from squeezeflow.core import contracts, datasets, figures, sizes
from squeezeflow.modelkit import (
    conversion,
    data,
    keras_saved_model,
    keras_source,
    proof,
    saved_model_source,
    scan_graph,
    source,
    warm,
)

__all__ = [
    "ai_edge_litert",
    "contracts",
    "conversion",
    "data",
    "datasets",
    "figures",
    "h5py",
    "keras",
    "keras_saved_model",
    "keras_source",
    "proof",
    "saved_model_source",
    "scan_graph",
    "sizes",
    "source",
    "tensorflow",
    "tf_keras",
    "warm",
]
