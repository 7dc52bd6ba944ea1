"""Where in a file something is wrong: a detail names the tensor, and the Keras layer that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from squeezeflow.core.tflite import Tensor, TfliteFile, Weight

# A detail is read by people: of many tensors the first are named.
_SHOWN = 3


def weight_place(file: TfliteFile, weight: Weight) -> str:
    """Gives `weight cnn/conv/Conv2D of CONV_2D in layer conv`, without a layer where no name tells one."""
    layer = file.layer_of(weight.tensor, weight.subgraph)
    return f"weight {weight.tensor.name} of {weight.operator}" + (f" in layer {layer}" if layer else "")


def tensor_place(file: TfliteFile, tensor: Tensor, subgraph: int = 0) -> str:
    """Gives `cnn/relu/Relu (layer relu)`, without a layer where no name tells one."""
    layer = file.layer_of(tensor, subgraph)
    return f"{tensor.name} (layer {layer})" if layer else tensor.name


def tensor_names(tensors: Sequence[Tensor]) -> str:
    """Gives `in tensor a` or `in tensors a, b`, for a detail that names the layer already; empty for none."""
    if not tensors:
        return ""
    names = [tensor.name for tensor in tensors[:_SHOWN]] + (["…"] if len(tensors) > _SHOWN else [])
    return f"in tensor{'s' if len(tensors) > 1 else ''} {', '.join(names)}"
