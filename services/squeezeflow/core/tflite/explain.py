"""What can be told from a file about its operators: why one is still float, and which Keras layer it came from.

Files hold no reasons and no layers. A reason is told only where types and sizes leave one; a layer is told by the names
of tensors, which the converter makes of the paths of operations: `cnn/conv/Conv2D`, fused ones `cnn/relu/Relu;cnn/…`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property

from squeezeflow.core.tflite.arithmetic import (
    BORDER,
    DYNAMIC_MINIMUM,
    FLOAT,
    HYBRID,
    HYBRID_KERNELS,
    QUANTIZED_WEIGHTS,
    arithmetic,
)
from squeezeflow.core.tflite.layout import Operator, Subgraph, Tensor
from squeezeflow.core.tflite.values import FLOATS
from squeezeflow.core.tflite.weights import LOOKUPS, PASS_THROUGH, WEIGHTS, unpacked_constants

# Seen with LiteRT 2.3: files of one such operator on int8 tensors are refused.
NO_INT8_KERNEL = frozenset(
    {
        *("SIN", "COS", "SQUARE", "FLOOR", "CEIL", "ROUND", "ELU", "SIGN", "POW", "ATAN2"),
        *("CUMSUM", "ZEROS_LIKE", "CONV_3D", "CONV_3D_TRANSPOSE", "LOCAL_RESPONSE_NORMALIZATION", "RFFT2D"),
    }
)
_CONTROL = frozenset({"WHILE", "IF", "CALL", "CALL_ONCE"})
UNKNOWN = "left float by request or by the converter: the file does not say which"

# Names that the converter gives where it has none: they say nothing of a layer.
_NAMELESS = re.compile(r"(arith\.|tfl\.|tf\.)\w*\d*|(Stateful)?PartitionedCall.*|Identity.*|serving_default.*")
# Scopes that layers open within themselves, by whether they tell that the next one does too.
_OWN_SCOPES = re.compile(r"separable_conv\dd|batchnorm|LastValueQuant|MovingAvgQuantize|AllValuesQuantize|\w+_cell")
_EINSUM = re.compile(r"einsum(_\d+)?")
_ATTENTION_SCOPES = frozenset({"query", "key", "value", "attention_output"})
_WITH_WEIGHTS = re.compile("(?i)conv|depthwise|matmul|einsum|embedding")
_FAKE_QUANTIZATION = "FakeQuant"
_READ = "ReadVariableOp"
_WRAPPER = "quant_"


class Explainer:
    """Explains the operators of one graph."""

    def __init__(self, graph: Subgraph) -> None:
        self._graph = graph

    def reason(self, operator: Operator) -> str:
        """Says why an operator does not compute in integers alone; empty where it does."""
        kind = arithmetic(operator, self._graph)
        if kind not in (FLOAT, HYBRID):
            return ""
        weights, computed = self._weights(operator), self._computed(operator)
        if kind == HYBRID:
            types = sorted({tensor.dtype for tensor in weights if tensor.dtype in QUANTIZED_WEIGHTS})
            return f"weights are {' and '.join(types)}, activations are float"
        if operator.name in BORDER:
            return "unpacks float16 weights"
        integers = sorted({tensor.dtype for tensor in computed if tensor.dtype not in FLOATS and not tensor.scales})
        if operator.name in _CONTROL:
            return "runs other graphs of the file"
        if operator.custom:
            return "custom operator: no int8 kernel is known"
        if operator.name not in WEIGHTS and integers:
            return f"input is {' and '.join(integers)}"
        if not self._quantized:
            halves = any(tensor.dtype == "float16" for tensor in weights)
            return "weights are float16, unpacked to float32" if halves else "nothing in the file is quantized"
        if operator.name in NO_INT8_KERNEL:
            return "no int8 kernel"
        return self._reason_by_weights(operator, weights)

    def _reason_by_weights(self, operator: Operator, weights: list[Tensor]) -> str:
        """Gives the reason for an operator that could be integer, in a file that is so in part."""
        if self._quantized_activations:
            return UNKNOWN
        if not weights:
            return "no weights, and activations are float in this file"
        # The converter quantizes all of an operator's weights or none.
        if operator.name in HYBRID_KERNELS and min(tensor.size for tensor in weights) < DYNAMIC_MINIMUM:
            return f"weights under {DYNAMIC_MINIMUM:,} elements"
        return "no kernel for int8 weights" if operator.name not in HYBRID_KERNELS else UNKNOWN

    def layer(self, operator: Operator) -> str:
        """Names the layers that an operator came from, that of its weights first; empty where no name tells.

        Nested models are paths: `backbone/conv`. Several fused ones: `conv, relu`.
        """
        outputs = [self._graph.tensors[index] for index in operator.outputs]
        return self._named([*self._weights(operator), *outputs])

    def layer_of_tensor(self, tensor: Tensor) -> str:
        """Names the layers in a tensor's name, as `layer`; of a constant without one those of its first operator."""
        own = self._named([tensor])
        user = self._users.get(tensor.index) if tensor.constant and not own else None
        return self.layer(user) if user is not None else own

    def operations(self, tensor: Tensor) -> dict[str, str]:
        """Gives for each layer in a tensor's name, in the order of `layer`, the operation that named it."""
        return {layer: path[-1] for layer, path in self._found([tensor]).items()}

    def _named(self, tensors: list[Tensor]) -> str:
        return ", ".join(self._found(tensors))

    def _found(self, tensors: list[Tensor]) -> dict[str, list[str]]:
        """Gives the layers in tensors' names, each with the first path that lies in it."""
        paths = [path for tensor in tensors for path in _paths(tensor.name)]
        # Where several are fused, one of them has the weights, and its operation says so.
        paths.sort(key=lambda path: _WITH_WEIGHTS.search(path[-1]) is None)
        found: dict[str, list[str]] = {}
        for path in paths:
            found.setdefault(_layer(path, self.root, trained=self._trained), path)
        # `attention/Mul` beside `attention` is a scope within the layer.
        return {
            name: path
            for name, path in found.items()
            if name and not any(name.startswith(f"{other}/") for other in found if other)
        }

    def _weights(self, operator: Operator) -> list[Tensor]:
        sources = self._sources
        places = WEIGHTS.get(operator.name, ((), 0))[0]
        indices = [operator.inputs[place] for place in places if place < len(operator.inputs)]
        tensors = [self._graph.tensors[sources.get(index, index)] for index in indices if index >= 0]
        return [tensor for tensor in tensors if tensor.constant]

    def _computed(self, operator: Operator) -> list[Tensor]:
        tensors = [self._graph.tensors[index] for index in operator.inputs if index >= 0]
        return [tensor for tensor in tensors if not tensor.constant]

    @cached_property
    def _sources(self) -> Mapping[int, int]:
        return unpacked_constants(self._graph)

    @cached_property
    def _quantized(self) -> bool:
        return any(tensor.scales for tensor in self._graph.tensors)

    @cached_property
    def _quantized_activations(self) -> bool:
        computing = (o for o in self._graph.operators if o.name not in LOOKUPS and o.name not in BORDER)
        return any(self._graph.tensors[index].scales for operator in computing for index in operator.outputs)

    @cached_property
    def _users(self) -> dict[int, Operator]:
        """The first operator that reads a tensor, also where it reads it unpacked."""
        sources = self._sources
        users: dict[int, Operator] = {}
        for operator in reversed(self._graph.operators):
            if operator.name not in PASS_THROUGH:
                users.update((sources.get(index, index), operator) for index in operator.inputs)
        return users

    @cached_property
    def root(self) -> str:
        """The model's own name, where every path begins with it; empty where there is none."""
        paths = [path for tensor in self._graph.tensors for path in _paths(tensor.name) if len(path) > 1]
        first = {path[0] for path in paths}
        return first.pop() if len(first) == 1 and any(len(path) > 2 for path in paths) else ""

    @cached_property
    def _trained(self) -> bool:
        """Whether names of quantization-aware training are left: it wraps layers and calls them `quant_…`."""
        return any(_FAKE_QUANTIZATION in tensor.name for tensor in self._graph.tensors)


def _paths(name: str) -> Iterator[list[str]]:
    """Yields the paths in a tensor's name, without what the converter put before them."""
    for path in name.split(";"):
        parts = [part for part in path.split("/") if part]
        while parts and _NAMELESS.fullmatch(parts[0]):
            parts = parts[1:]
        # Weights that are read from a variable: the operation is the one before.
        if len(parts) > 1 and parts[-1].startswith(_READ):
            parts = parts[:-1]
        if parts:
            yield parts


def _layer(path: list[str], root: str, *, trained: bool) -> str:
    """Gives the layer that a path of an operation lies in: without the model, the operation, and inner scopes."""
    parts = path[1:-1] if root and path[0] == root else path[:-1]
    while len(parts) > 1 and _OWN_SCOPES.fullmatch(parts[-1]):
        parts = parts[:-1]
    if len(parts) > 1 and _EINSUM.fullmatch(parts[-1]):
        parts = parts[:-2] if len(parts) > 2 and parts[-2] in _ATTENTION_SCOPES else parts[:-1]
    if trained:
        parts = [part.removeprefix(_WRAPPER) for part in parts]
    return "/".join(parts)
