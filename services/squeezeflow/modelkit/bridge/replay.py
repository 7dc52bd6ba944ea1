"""Replays the graph of a Keras 3 model on tf_keras layers.

Calls are made again in their order, on tensors of tf_keras. A layer that is called twice has one twin; a nested model
stays nested, under its name. Masks that Keras 3 writes into its graph are left to tf_keras, which makes its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import tf_keras
from keras.src.backend import KerasTensor, get_keras_mask
from keras.src.models.functional import Functional

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import layers
from squeezeflow.modelkit.bridge import activations, operations
from squeezeflow.modelkit.bridge.layers import Twin, twin_of_layer
from squeezeflow.modelkit.bridge.refusal import refusal
from squeezeflow.modelkit.bridge.weights import copy_weights


def is_graph(layer: Any) -> bool:
    """Says whether a layer of Keras 3 is a Sequential or Functional model."""
    return isinstance(layer, (keras.Sequential, Functional))


def twin_of_model(model: Any) -> tf_keras.Model:
    """Gives the tf_keras twin of a built Sequential or Functional model of Keras 3, with its weights and frozen layers.

    Errors: UNSUPPORTED_LAYER naming the layer.
    """
    if not is_graph(model):
        raise refusal(model, "it is a class of its own: save it as a Functional or Sequential model")
    graph = getattr(model, "_functional", model)
    if graph is None:
        raise refusal(model, "it was saved before its input shape was known: call it once")
    return _Replay(model, graph).run()


class _Replay:
    def __init__(self, model: Any, graph: Any) -> None:
        self.model, self.graph = model, graph
        self.twins: dict[int, Twin] = {}
        self.pairs: list[tuple[Any, Any]] = []
        self.taken = {operation.name for operation in graph._operations}
        self.last = {id(layers.origin(output)[0]) for output in graph.outputs}
        self.calls = list(_calls(graph))

    def run(self) -> tf_keras.Model:
        tensors: dict[int, Any] = {}
        for symbolic in self.graph.inputs:
            tensors[id(symbolic)] = _input(layers.origin(symbolic)[0], symbolic)
        for operation, args, kwargs, outputs in self.calls:
            args, kwargs = keras.tree.map_structure(lambda value: tensors.get(id(value), value), (args, kwargs))
            results = self._call(operation, args, kwargs, outputs)
            tensors.update(zip(map(id, outputs), keras.tree.flatten(results), strict=True))
        inputs, outputs = keras.tree.map_structure(
            lambda symbolic: tensors[id(symbolic)], (self.graph._inputs_struct, self.graph._outputs_struct)
        )
        twin = tf_keras.Model(inputs, outputs, name=self.model.name)
        for layer, other in self.pairs:
            copy_weights(layer, other)
        if not self.model.trainable:
            twin.trainable = False
        return twin

    def unique(self, name: str) -> str:
        """Gives a name that no other layer of this model has."""
        candidate, count = name, 0
        while candidate in self.taken:
            count += 1
            candidate = f"{name}_{count}"
        self.taken.add(candidate)
        return candidate

    def _call(self, operation: Any, args: Any, kwargs: Any, outputs: Sequence[Any]) -> Any:
        try:
            if not isinstance(operation, keras.layers.Layer):
                return operations.apply(operation, args, kwargs, outputs[0], self.unique)
            twin = self._twin(operation)
            return self._behind(operation, twin, args[0] if twin.layer is None else twin.layer(*args, **kwargs))
        except SqueezeflowError:
            raise
        except Exception as error:
            cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise refusal(operation, f"tf_keras does not take it ({cause[:300]})") from error

    def _twin(self, layer: Any) -> Twin:
        if id(layer) not in self.twins:
            if is_graph(layer):
                self.twins[id(layer)] = Twin(twin_of_model(layer))
            else:
                twin = twin_of_layer(layer, layer.name)
                if id(layer) in self.last and twin.layer is not None and (twin.activation or twin.behind is not None):
                    # An output is called by the layer that makes it, which will be its activation.
                    twin = twin_of_layer(layer, self.unique(f"{layer.name}_linear"))
                self.twins[id(layer)] = twin
                if layer.weights:
                    self.pairs.append((layer, twin.layer))
        return self.twins[id(layer)]

    def _behind(self, layer: Any, twin: Twin, result: Any) -> Any:
        """Applies the activation that the twin of a layer has not itself."""
        if not twin.activation and twin.behind is None:
            return result
        named = id(layer) in self.last or twin.layer is None
        if twin.activation:
            name = layer.name if named else self.unique(f"{layer.name}_{twin.activation}")
            return activations.build(twin.activation, result, name, self.unique)
        if named:
            twin.behind._name = layer.name
        return twin.behind(result)


def _input(layer: Any, symbolic: Any) -> Any:
    if not isinstance(layer, keras.layers.InputLayer):
        raise refusal(layer, "an input of the model is not an Input layer")
    return tf_keras.Input(
        batch_shape=tuple(symbolic.shape), dtype=keras.backend.standardize_dtype(symbolic.dtype), name=layer.name
    )


def _calls(graph: Any) -> Iterator[tuple[Any, Any, Any, Sequence[Any]]]:
    """Gives (layer or operation, args, kwargs, results) of every call that an output depends on, in their order."""
    depths = sorted(graph._nodes_by_depth)
    needed = {id(output) for output in graph.outputs}
    found = []
    for node in (node for depth in depths for node in reversed(graph._nodes_by_depth[depth])):
        if node.is_input or not any(id(output) in needed for output in node.outputs):
            continue
        args, kwargs = node.arguments.args, _kwargs(node)
        needed |= {id(value) for value in keras.tree.flatten((args, kwargs)) if isinstance(value, KerasTensor)}
        found.append((node.operation, args, kwargs, node.outputs))
    return reversed(found)


def _kwargs(node: Any) -> dict[str, Any]:
    """Gives the keyword arguments of a call that mean something in tf_keras.

    Keras 3 notes `training` of every layer, and then goes by how the whole model is called; at a nested model it was
    given by hand, and there False keeps it in inference while the rest is trained.
    """
    operation, arguments = node.operation, node.arguments
    if not isinstance(operation, keras.layers.Layer):
        return dict(arguments.kwargs)
    own = [_mask(tensor) for tensor in arguments.keras_tensors]
    kept = {}
    for name, value in arguments.kwargs.items():
        if value is None or (name == "training" and not (is_graph(operation) and value is False)):
            continue
        if name.endswith("mask") and name not in ("attention_mask", "use_causal_mask") and _is_own(value, own):
            continue
        kept[name] = value
    return kept


def _mask(tensor: Any) -> Any:
    return get_keras_mask(tensor)


def _is_own(value: Any, masks: Iterable[Any]) -> bool:
    masks = [mask for mask in masks if mask is not None]
    return all(one is None or any(_same(one, mask) for mask in masks) for one in keras.tree.flatten(value))


def _same(one: Any, other: Any) -> bool:
    """Says whether two symbolic tensors are the same calculation."""
    if one is other:
        return True
    if not (isinstance(one, KerasTensor) and isinstance(other, KerasTensor)):
        return not isinstance(one, KerasTensor) and not isinstance(other, KerasTensor) and bool(one == other)
    first, second = getattr(one, "_keras_history", None), getattr(other, "_keras_history", None)
    if first is None or second is None or first.tensor_index != second.tensor_index:
        return False
    if first.operation is not second.operation and (
        isinstance(first.operation, keras.layers.Layer) or type(first.operation) is not type(second.operation)
    ):
        return False
    given = [history.operation._inbound_nodes[history.node_index].arguments for history in (first, second)]
    left, right = (keras.tree.flatten((arguments.args, arguments.kwargs)) for arguments in given)
    return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
