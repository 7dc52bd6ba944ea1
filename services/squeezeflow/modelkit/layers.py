"""Facts about Keras layers of both libraries, read from built models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from squeezeflow.modelkit import naming
from squeezeflow.modelkit.compile_config import CompileConfig

# Layers that loop over time; with a free batch axis they do not convert (TensorListReserve).
_LOOPS = frozenset({"LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "Bidirectional"})
# Layers that hand their input's meaning on.
_TRANSPARENT = frozenset({"Flatten", "Reshape", "Dropout", "Permute", "RepeatVector"})


def walk(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Gives (path, layer) of every leaf layer, nested models' layers under the path of their model."""
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        if hasattr(layer, "layers") and not hasattr(layer, "forward_layer"):
            yield from walk(layer, f"{path}/")
        else:
            yield path, layer


def output_shape(layer: Any) -> list[int]:
    """Gives the shape of a layer's one output with -1 for free axes; empty where it has several, or none is known."""
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):
        # Used in several places, or never called.
        return []
    return [-1 if size is None else int(size) for size in shape] if shape is not None else []


def fixed_batch_layers(model: Any) -> list[str]:
    """Names the layers that force the batch to 1 where the model's batch axis is free."""
    if all(tensor.shape[0] is not None for tensor in model.inputs if len(tensor.shape)):
        return []
    return [path for path, layer in walk(model) if _forces_batch(layer)]


def _forces_batch(layer: Any) -> bool:
    name = type(layer).__name__
    # With a free batch, the BROADCAST_TO that tf_keras (not Keras 3) makes of it cannot be prepared by LiteRT.
    if name == "GroupNormalization":
        return type(layer).__module__.startswith("tf_keras")
    return name in _LOOPS and not getattr(getattr(layer, "forward_layer", layer), "unroll", False)


def origin(tensor: Any) -> tuple[Any, int]:
    """Gives the layer that made a symbolic tensor, and which of its outputs it is."""
    history = tensor._keras_history
    return getattr(history, "operation", None) or history.layer, history.tensor_index


def input_names(model: Any) -> list[str]:
    """Names a model's inputs by their Input layers, which the file keeps (tensor names are counted per process)."""
    return naming.unique([origin(tensor)[0].name for tensor in model.inputs])


def output_names(model: Any) -> list[str]:
    """Names a model's outputs by the layers that make them."""
    return naming.unique([origin(tensor)[0].name for tensor in model.outputs])


def last_layer(model: Any, index: int) -> Any:
    """Gives the layer that gives output `index` its values: through nested models and layers that only reshape."""
    layer, inner = origin(model.outputs[index])
    while True:
        if getattr(layer, "layers", None) and getattr(layer, "outputs", None):
            layer, inner = origin(layer.outputs[inner])
        elif type(layer).__name__ in _TRANSPARENT and not isinstance(getattr(layer, "input", ()), (list, tuple)):
            layer, inner = origin(layer.input)
        else:
            return layer


def activation(layer: Any) -> str:
    """Gives the name of a layer's activation: `linear` where it has none, empty where it could not have one."""
    name = type(layer).__name__
    if name in ("Softmax", "ReLU", "LeakyReLU", "ELU", "PReLU"):
        return name.lower()
    function = getattr(layer, "activation", None)
    return getattr(function, "__name__", "") if function is not None else ""


def meaning(model: Any, index: int, compiled: CompileConfig) -> str:
    """Says what an output is: `probabilities`, `logits`, `values`; empty where neither layer nor loss tells."""
    name = activation(last_layer(model, index))
    if name in ("softmax", "sigmoid"):
        return "probabilities"
    if compiled.from_logits and name in ("linear", ""):
        return "logits"
    if name in ("tanh", "relu", "softplus") or compiled.loss in ("mean_squared_error", "mean_absolute_error", "huber"):
        return "values"
    return ""
