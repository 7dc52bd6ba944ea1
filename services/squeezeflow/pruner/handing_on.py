"""What TFMOT's wrappers keep from the layer that they wrap: its masks, and the arguments that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


class HandingOn:
    """Goes before a wrapper of TFMOT among the bases of a wrapper."""

    layer: Any

    def hand_on_to(self, layer: Any) -> None:
        """Looks at what the layer takes."""
        self._accepted = frozenset(inspect.signature(layer.call).parameters)
        self.supports_masking = layer.supports_masking

    def taken(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Gives the arguments of a call that the layer takes: Keras offers a mask to whoever takes any."""
        return {
            name: value
            for name, value in arguments.items()
            if name in self._accepted or name not in ("training", "mask")
        }

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Gives the layer's mask."""
        return self.layer.compute_mask(inputs, mask)
