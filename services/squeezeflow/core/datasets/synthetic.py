"""Inputs where there is no data, drawn by seed from what dtype and shape allow.

Good enough to compare two models on the same numbers, not to judge either.
"""

from __future__ import annotations

import numpy as np

from squeezeflow.core.datasets.conversion import require_numeric
from squeezeflow.core.datasets.reading import Array
from squeezeflow.v1 import contract_pb2

# Free axes other than the batch (height, width, time): large enough for five halvings, small enough to be quick.
FREE_AXIS = 32


def synthetic_inputs(contract: contract_pb2.Contract, count: int, seed: int) -> dict[str, Array]:
    """Gives `count` samples by input name: floats from −1 to 1, bytes over their range, other integers 0 and 1.

    Inputs that are quantized in the file get floats over the range that it can represent. Integers are mostly ids, and
    0 and 1 are in every vocabulary. Errors: UNSUPPORTED_INPUT.
    """
    generator = np.random.default_rng(seed)
    return {tensor.name: _draw(tensor, count, generator) for tensor in contract.inputs}


def _draw(tensor: contract_pb2.TensorContract, count: int, generator: np.random.Generator) -> Array:
    dtype = require_numeric(tensor)
    shape = (count, *(FREE_AXIS if size < 0 else size for size in tensor.shape[1:]))
    if tensor.HasField("quantization"):
        limits = np.iinfo(tensor.dtype)
        low, high = (
            (end - tensor.quantization.zero_point) * tensor.quantization.scale
            for end in (int(limits.min), int(limits.max))
        )
        return generator.uniform(low, high, shape).astype(dtype)
    if dtype.kind == "f":
        return generator.uniform(-1.0, 1.0, shape).astype(dtype)
    if dtype == np.uint8:
        return generator.integers(0, 256, shape, dtype=np.uint8)
    return generator.integers(0, 2, shape).astype(dtype)
