"""The copy of a model that TFMOT quantizes: chosen layers annotated, all others as they are.

Built anew, layer by layer, so that nothing that was chosen ends up float without a word: where a chosen layer takes
what a float layer gives, a quantizing layer is put between; what TFLite computes in several operators, with nothing
quantized between them, is laid out in several layers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantizers import MovingAverageQuantizer

from squeezeflow.modelkit import layers, naming
from squeezeflow.modelkit.quantizable import KERNELS
from squeezeflow.quantizer.fusing import FUSED, takes_activations

# Activations of a layer with a kernel that TFLite computes in operators of their own, quantized before and after.
APART = frozenset({"swish", "silu"})
# Layers of many inputs that TFLite computes two at a time: what is between must be quantized too.
PAIRWISE = frozenset({"Add", "Multiply", "Maximum"})


def annotate(
    model: Any, chosen: Collection[str], *, folded: Mapping[str, Any], frozen: Collection[str] = ()
) -> tf_keras.Model:
    """Gives a copy of a flat model in which the chosen layers are annotated, with flat lists of inputs and outputs.

    Args:
        model: tf_keras; its layers are not touched.
        chosen: names of the layers to quantize.
        folded: name of a BatchNormalization → the dense layer right before it, into which it is folded.
        frozen: names of layers that must not be trained.
    """
    copy = _Copy([layer.name for layer in model.layers], chosen, folded, frozen)
    inputs = [copy.add_input(tensor) for tensor in model.inputs]
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                copy.add(node)
    annotated = tf_keras.Model(inputs, [copy.tensors[id(tensor)] for tensor in model.outputs], name=model.name)
    normalizations = {id(dense): model.get_layer(name) for name, dense in folded.items()}
    for layer, made in copy.made:
        normalization = normalizations.get(id(layer))
        made.set_weights(fold(layer, normalization) if normalization is not None else layer.get_weights())
    return annotated


def fold(dense: Any, normalization: Any) -> list[np.ndarray]:
    """Gives kernel and bias of a dense layer that computes what it and the BatchNormalization after it do."""
    epsilon, mean, variance = normalization.epsilon, normalization.moving_mean, normalization.moving_variance
    scale = normalization.gamma.numpy() if normalization.scale else 1.0
    shift = normalization.beta.numpy() if normalization.center else 0.0
    factor = (scale / np.sqrt(variance.numpy() + epsilon)).astype(np.float32)
    bias = dense.bias.numpy() if dense.use_bias else 0.0
    return [dense.kernel.numpy() * factor, (bias - mean.numpy()) * factor + shift]


class _Copy:
    """A model while it is built: symbolic tensors of the source → those of the copy."""

    def __init__(
        self, names: Collection[str], chosen: Collection[str], folded: Mapping[str, Any], frozen: Collection[str]
    ) -> None:
        self.tensors: dict[int, Any] = {}
        self.made: list[tuple[Any, Any]] = []
        self._names, self._chosen, self._frozen = list(names), chosen, frozen
        self._folded = set(folded)
        self._with_bias = {id(dense) for dense in folded.values()}
        self._layers: dict[int, Any] = {}
        self._float: set[int] = set()
        self._quantized: dict[int, Any] = {}

    def add_input(self, tensor: Any) -> Any:
        """Adds an input; TFMOT itself quantizes it where a chosen layer takes it."""
        layer = layers.origin(tensor)[0]
        made = tf_keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=layer.name)
        self.tensors[id(tensor)] = made
        return made

    def add(self, node: Any) -> None:
        """Calls the copy of a node's layer on the copies of its inputs."""
        chosen = node.layer.name in self._chosen
        given = {
            str(id(tensor)): self._integer(id(tensor)) if chosen else self.tensors[id(tensor)]
            for tensor in node.keras_inputs
        }
        results = self._call(node, chosen, given)
        for tensor, made in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(results), strict=True):
            self.tensors[id(tensor)] = made
            if not chosen:
                self._float.add(id(tensor))

    def _call(self, node: Any, chosen: bool, given: Mapping[str, Any]) -> Any:
        layer = node.layer
        args, kwargs = node.map_arguments({key: [tensor] * len(node.flat_input_ids) for key, tensor in given.items()})
        if layer.name in self._folded:
            return args[0]
        if not chosen:
            return self._copied(layer)(*args, **kwargs)
        if type(layer).__name__ in PAIRWISE and len(args[0]) > 2:
            first, *others = args[0]
            for other in others:
                first = _annotated(type(layer)(name=self._name(layer.name)))([first, other])
            return first
        if id(layer) not in self._layers:
            self._layers[id(layer)] = _annotated(self._copied(layer))
        result = self._layers[id(layer)](*args, **kwargs)
        if _apart(layer):
            name = self._name(f"{layer.name}_{layers.activation(layer)}")
            result = _annotated(tf_keras.layers.Activation(layer.activation, name=name))(result)
        return result

    def _copied(self, layer: Any) -> Any:
        if id(layer) not in self._layers:
            config = layer.get_config()
            if id(layer) in self._with_bias:
                config["use_bias"] = True
            if layer.name in self._chosen and _apart(layer):
                config["activation"] = "linear"
            made = type(layer).from_config(config)
            made.trainable = layer.trainable and layer.name not in self._frozen
            self.made.append((layer, made))
            self._layers[id(layer)] = made
        return self._layers[id(layer)]

    def _integer(self, tensor: int) -> Any:
        """Gives a tensor with its values quantized, where a float layer gives it."""
        if tensor not in self._float:
            return self.tensors[tensor]
        if tensor not in self._quantized:
            quantizer = MovingAverageQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
            name = self._name(f"quantize_{len(self._quantized)}")
            self._quantized[tensor] = QuantizeLayer(quantizer, name=name)(self.tensors[tensor])
        return self._quantized[tensor]

    def _name(self, wanted: str) -> str:
        """Gives a name that no layer has yet."""
        self._names.append(naming.unique([*self._names, wanted])[-1])
        return self._names[-1]


def _annotated(layer: Any) -> Any:
    return tfmot.quantization.keras.quantize_annotate_layer(layer)


def _apart(layer: Any) -> bool:
    activation = layers.activation(layer)
    if type(layer).__name__ not in KERNELS:
        return False
    return activation in APART or (activation in FUSED and not takes_activations(layer))
