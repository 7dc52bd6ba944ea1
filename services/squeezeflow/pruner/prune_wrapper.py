"""TFMOT's pruning wrapper, for what it does not do: kernels inside of wrappers, a sparsity for every kernel, masks of
sequences handed on to the layer.

How a kernel is masked, and when, is TFMOT's; here is only decided which kernels are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_impl import Pruning
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import PruneLowMagnitude

from squeezeflow.pruner.handing_on import HandingOn
from squeezeflow.pruner.patterns import Pattern


@dataclass(frozen=True)
class MaskedKernel:
    """A kernel of a layer, or of what lies inside of it.

    Attributes:
        weight: the variable.
        pattern: where its zeros may lie.
        schedule: TFMOT's, of its share of zeros.
    """

    weight: Any
    pattern: Pattern
    schedule: Any


class Pruned(HandingOn, PruneLowMagnitude):
    """Prunes kernels of a layer, and of layers and cells inside of it, while it is trained.

    Args:
        layer: built.
        kernels: of this layer.
    """

    def __init__(self, layer: tf_keras.layers.Layer, kernels: Sequence[MaskedKernel]) -> None:
        # TFMOT takes every layer that can say which weights are to be pruned.
        layer.get_prunable_weights = lambda: [kernel.weight for kernel in kernels]
        super().__init__(layer, kernels[0].schedule)
        # TFMOT's name, that event files carry.
        self._name = f"prune_low_magnitude_{layer.name}"
        self._kernels = tuple(kernels)
        self.hand_on_to(layer)

    def build(self, input_shape: Any) -> None:
        """Makes a mask for every kernel, and what updates it."""
        super(PruneLowMagnitude, self).build(input_shape)
        self.pruning_vars = [self._masked(kernel.weight) for kernel in self._kernels]
        self.pruning_step = self.add_weight(
            "pruning_step",
            shape=[],
            initializer=tf_keras.initializers.Constant(-1),
            dtype=tf.int64,
            trainable=False,
        )
        self.pruning_obj = _Together(
            [
                Pruning(
                    training_step_fn=lambda: self.pruning_step,
                    pruning_vars=[variables],
                    pruning_schedule=kernel.schedule,
                    block_size=kernel.pattern.block,
                    block_pooling_type="MAX" if kernel.pattern.largest else "AVG",
                    sparsity_m_by_n=kernel.pattern.m_by_n,
                )
                for kernel, variables in zip(self._kernels, self.pruning_vars, strict=True)
            ]
        )

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """Masks the kernels and calls the layer, with those of the arguments that it takes."""
        return super().call(inputs, training=training, **self.taken(kwargs))

    def _masked(self, weight: Any) -> tuple[Any, Any, Any]:
        # Under mixed precision, a variable reports the type that it is cast to.
        settings = {
            "dtype": getattr(weight, "true_dtype", weight.dtype),
            "trainable": False,
            "aggregation": tf.VariableAggregation.MEAN,
        }
        mask = self.add_weight("mask", shape=weight.shape, initializer="ones", **settings)
        return weight, mask, self.add_weight("threshold", shape=[], initializer="zeros", **settings)


class _Together:
    """The updates of all kernels, as one of TFMOT's."""

    def __init__(self, prunings: Sequence[Pruning]) -> None:
        self._prunings = prunings

    def conditional_mask_update(self) -> Any:
        """Updates the masks where it is time."""
        return tf.group(*(pruning.conditional_mask_update() for pruning in self._prunings))

    def weight_mask_op(self) -> Any:
        """Masks the kernels."""
        return tf.group(*(pruning.weight_mask_op() for pruning in self._prunings))
