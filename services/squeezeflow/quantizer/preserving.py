"""Fake quantization that keeps what pruning and clustering gave: zeros, and few distinct values.

Done on the kernel before it is rounded. Zeros are kept by a mask. Clusters are kept as in Han, Mao and Dally 2015
(arXiv:1510.00149): who belongs to whom stays, the common value is trained. Both work on every kernel that TFMOT
quantizes, per tensor or per channel, and cost nothing to speak of. TFMOT's own schemes do the same for Conv2D and Dense
only, lose both before a Concatenate, and one kernel without zeros ends the keeping of zeros in all later ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
    default_8bit_quantize_registry as registry,
)

from squeezeflow.core import invariants
from squeezeflow.quantizer.fusing import FusedLayout

Array = npt.NDArray[Any]

# Layers that only TFMOT's registry leaves out: TFLite computes them in integers, between quantized inputs and output.
OUTPUT_ONLY = frozenset({"Subtract", "Multiply", "Maximum"})


@dataclass(frozen=True)
class Keep:
    """What is kept of the kernels that have it.

    Attributes:
        zeros, clusters: whether.
        sources: kernels of the source by layer name, where the layer that is trained starts from another one.
    """

    zeros: bool = False
    clusters: bool = False
    sources: Mapping[str, Array] = field(default_factory=dict)


class KeepingQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """A weight quantizer that first puts zeros and common values back where they were in the kernel.

    Args:
        base: TFMOT's quantizer of that kernel.
        keep: what is kept.
    """

    def __init__(self, base: Any, keep: Keep) -> None:
        self._base, self._keep = base, keep
        self._kernel: Any = None
        self._mask: Any = None
        self._groups: Any = None
        self._count = 0

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Looks for zeros and clusters in the kernel of a wrapped layer; gives the variables of the base."""
        self._kernel = getattr(layer.layer, name)
        values = self._kernel.numpy()
        source = {name: self._keep.sources.get(layer.layer.name, values)}
        if self._keep.zeros and invariants.sparsity_targets(source):
            self._mask = (values != 0).astype(values.dtype)
        if self._keep.clusters and invariants.cluster_targets(source):
            distinct, groups = np.unique(values, return_inverse=True)
            self._groups, self._count = groups.reshape(values.shape).astype(np.int32), len(distinct)
        return dict(self._base.build(tensor_shape, name, layer))

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        """Gives the rounded kernel.

        Only training needs the means: the gradient of one is that of all weights that share it, so that equal weights
        stay equal.
        """
        if self._groups is not None and training:
            means = tf.math.unsorted_segment_mean(inputs, self._groups, self._count)
            inputs = tf.gather(means, self._groups)
        if self._mask is not None:
            inputs = inputs * self._mask
        return self._base(inputs, training, weights, **kwargs)

    def settle(self) -> None:
        """Puts the kept values into the kernel itself: what rounding in the optimizer took apart is one value again."""
        values = self._kernel.numpy()
        if self._groups is not None:
            groups = self._groups.reshape(-1)
            sums = np.bincount(groups, values.reshape(-1).astype(np.float64), self._count)
            values = (sums / np.bincount(groups, minlength=self._count))[self._groups].astype(values.dtype)
        if self._mask is not None:
            values = values * self._mask
        self._kernel.assign(values)

    def get_config(self) -> dict[str, Any]:
        """Gives the base's; such a model is never written as a Keras file."""
        return dict(self._base.get_config())


class KeepingRegistry(registry.Default8BitQuantizeRegistry):
    """TFMOT's registry, with quantizers that keep what they are to keep.

    Args:
        keep: for all kernels.
    """

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self._keep = keep

    def supports(self, layer: Any) -> bool:
        """Whether a layer can be quantized."""
        return type(layer).__name__ in OUTPUT_ONLY or bool(super().supports(layer))

    def get_quantize_config(self, layer: Any) -> Any:
        """Gives a configuration of its own for every layer, so that none changes another's."""
        if type(layer).__name__ in OUTPUT_ONLY:
            return registry.Default8BitQuantizeConfig([], [], True)
        # A registry holds one configuration for all convolutions.
        config = registry.Default8BitQuantizeRegistry().get_quantize_config(layer)
        if not getattr(config, "weight_attrs", None):
            return config
        if getattr(layer.activation, "__name__", "") == "relu6":
            # Not among the activations that TFMOT quantizes, but fused by TFLite as ReLU is.
            config.activation_attrs, config.quantize_output = [], True
        config.weight_quantizer = KeepingQuantizer(config.weight_quantizer, self._keep)
        return config


class KeepingScheme(tfmot.quantization.keras.QuantizeScheme):
    """8 bits everywhere, as TFMOT does it by default, with the kernels' zeros and clusters kept.

    Args:
        keep: for all kernels.
    """

    def __init__(self, keep: Keep) -> None:
        self._registry = KeepingRegistry(keep)

    def get_layout_transformer(self) -> Any:
        """Gives what rearranges the model for its fake quantization."""
        return FusedLayout(self._registry)

    def get_quantize_registry(self) -> Any:
        """Gives what knows how each layer is quantized."""
        return self._registry
