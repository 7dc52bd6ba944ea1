"""Inlines nested tf_keras models: a flat graph around the same layers, that computes exactly what the nested one does.

Quantization-aware training refuses a model inside of a model. The calls of every nested model are replayed on the
tensors that it is given, so a layer of a model that is used twice is used twice. Layers are shared with the model that
was given, and so are renamed layers: names have to be unique in the flat graph, and its outputs keep their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
import tf_keras

from squeezeflow.modelkit import layers, naming


@dataclass(frozen=True)
class Flat:
    """A model without nested models.

    Attributes:
        model: the flat graph, around the layers of the model that was given.
        paths: name of a layer in it → its path in the model that was given, `MODEL/LAYER`, as `layers.walk` has it.
    """

    model: tf_keras.Model
    paths: Mapping[str, str]


def flatten(model: tf_keras.Model) -> Flat:
    """Inlines the nested Sequential and Functional models of a model, at every depth.

    A layer whose name is taken gets its path as its name (`MODEL_LAYER`); the layer that makes an output gets the name
    that the output had, which is a nested model's where that made it. Layers of a frozen model are frozen. A nested
    model is left in place where inlining would change something: it is subclassed, is called with a mask of its own,
    or changes the type or rank of what it is given.

    Args:
        model: built, Sequential or Functional; its layers become layers of both, under their new names.
    """
    if not any(_graph(layer) for layer in model.layers):
        return Flat(model, {layer.name: layer.name for layer in model.layers})
    trained = {id(weight) for weight in model.trainable_weights}
    names = layers.output_names(model)
    replay = _Replay()
    for tensor in model.inputs:
        replay.note(layers.origin(tensor)[0], "")
    results = replay.run(model, model.inputs)
    _rename(replay, names, results)
    outputs = tf.nest.pack_sequence_as(model._nested_outputs, _named(names, results))
    flat = tf_keras.Model(model._nested_inputs, outputs, name=model.name)
    for layer in flat.layers:
        if layer.trainable_weights and not any(id(weight) in trained for weight in layer.weights):
            layer.trainable = False
    return Flat(flat, {layer.name: replay.paths.get(id(layer), layer.name) for layer in flat.layers})


@dataclass
class _Replay:
    """Calls layers again, in the order of their graphs; keeps where each was first found."""

    paths: dict[int, str] = field(default_factory=dict)
    found: list[Any] = field(default_factory=list)

    def run(self, model: Any, inputs: Sequence[Any], prefix: str = "", training: bool | None = None) -> list[Any]:
        """Gives a model's outputs for other inputs, in the order of `model.outputs`."""
        tensors = {id(old): new for old, new in zip(model.inputs, inputs, strict=True)}
        for node in _nodes(model):
            if node.is_input or any(id(tensor) not in tensors for tensor in node.keras_inputs):
                continue
            results = self._call(node.layer, *_arguments(node, tensors), prefix, training)
            tensors.update(zip(map(id, tf.nest.flatten(node.outputs)), tf.nest.flatten(results), strict=True))
        return [tensors[id(output)] for output in model.outputs]

    def note(self, layer: Any, prefix: str) -> None:
        """Keeps the path of a layer, where it is new."""
        if id(layer) not in self.paths:
            self.paths[id(layer)] = f"{prefix}{layer.name}"
            self.found.append(layer)

    def _call(self, layer: Any, args: Any, kwargs: dict[str, Any], prefix: str, training: bool | None) -> Any:
        own = _argument(layer, "training", args, kwargs)
        training = training if own is None else own
        if _graph(layer) and _argument(layer, "mask", args, kwargs) is None:
            given = layer._flatten_to_reference_inputs(args[0] if args else kwargs["inputs"])
            if _fits(layer, given):
                results = self.run(layer, given, f"{prefix}{layer.name}/", training)
                return tf.nest.pack_sequence_as(layer._nested_outputs, results)
        if training is not None and layer._call_spec.expects_training_arg:
            # What a nested model is told, it tells its layers.
            args, kwargs = layer._call_spec.set_arg_value("training", training, args, kwargs, inputs_in_args=True)
        self.note(layer, prefix)
        return layer(*args, **kwargs)


def _argument(layer: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    spec = layer._call_spec
    if not spec.arg_was_passed(name, args, kwargs, inputs_in_args=True):
        return None
    return spec.get_arg_value(name, args, kwargs, inputs_in_args=True)


def _graph(layer: Any) -> bool:
    return isinstance(layer, tf_keras.Model) and bool(layer._is_graph_network)


def _fits(model: Any, given: Sequence[Any]) -> bool:
    return len(given) == len(model.inputs) and all(
        tensor.dtype == wanted.dtype and tensor.shape.rank == wanted.shape.rank
        for tensor, wanted in zip(given, model.inputs, strict=True)
    )


def _nodes(model: Any) -> Iterator[Any]:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from model._nodes_by_depth[depth]


def _arguments(node: Any, tensors: Mapping[int, Any]) -> tuple[Any, dict[str, Any]]:
    mapped: tuple[Any, dict[str, Any]] = tf.nest.map_structure(
        lambda value: tensors.get(id(value), value), (node.call_args, node.call_kwargs)
    )
    return mapped


def _rename(replay: _Replay, names: Sequence[str], results: Sequence[Any]) -> None:
    """Makes the layers' names unique: outputs keep theirs, then come layers of the model itself, then nested ones."""
    wanted: dict[int, str] = {}
    for name, result in zip(names, results, strict=True):
        maker = layers.origin(result)[0]
        if not isinstance(maker, tf_keras.layers.InputLayer):
            wanted.setdefault(id(maker), name)
    taken = set(names)
    others = [layer for layer in replay.found if id(layer) not in wanted]
    for layer in sorted(others, key=lambda layer: "/" in replay.paths[id(layer)]):
        name, count = layer.name, 0
        while name in taken:
            count += 1
            path = replay.paths[id(layer)].replace("/", "_")
            name = path if count == 1 else f"{path}_{count - 1}"
        taken.add(name)
        layer._name = name
    for layer in replay.found:
        layer._name = wanted.get(id(layer), layer.name)


def _named(names: Sequence[str], results: Sequence[Any]) -> list[Any]:
    """Gives the outputs under their names: one whose layer cannot have it goes through a layer that does nothing."""
    makers = naming.unique([layers.origin(result)[0].name for result in results])
    return [
        result if maker == name else tf_keras.layers.Activation("linear", name=name)(result)
        for result, maker, name in zip(results, makers, names, strict=True)
    ]
