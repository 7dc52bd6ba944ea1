"""What a TFLite file holds, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FLEX_PREFIX = "Flex"


@dataclass(frozen=True)
class Tensor:
    """One tensor.

    Attributes:
        dtype: numpy name, or `int4`, `int2`, `uint4`, `bfloat16`, `float8_…`, `string`, `resource`, `variant`.
        shape: with -1 for free axes.
        stored_shape: the shape that the file's values fill; free axes are 1 there.
        scales, zero_points: equally many: none, one, one a slice along `quantized_dimension`, or one a block.
        quantized_dimension: -1 where there are fewer than two scales, or one a block.
        block_size: how many elements along the last axis share a scale, blocks in the order of the values; 0 where the
            tensor is not quantized block-wise.
        buffer: the bytes of a constant; None where the tensor is computed.
        variable: it keeps its value between invocations.
        sparse: the buffer holds only the blocks that are not zero.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    quantized_dimension: int = -1
    buffer: memoryview | None = field(default=None, repr=False)
    variable: bool = False
    sparse: bool = False
    block_size: int = 0

    @property
    def constant(self) -> bool:
        """Whether the file holds its values."""
        return self.buffer is not None

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.stored_shape:
            size *= length
        return size


@dataclass(frozen=True)
class Operator:
    """One operator; `custom` ones carry their own name, `FlexErfinv` or `NumericVerify`."""

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    custom: bool = False
    transposed_weights: bool = False


@dataclass(frozen=True)
class Subgraph:
    """One graph: the main one is the first, others are bodies of loops and conditions."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """Names of tensors of one subgraph."""

    key: str
    subgraph: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
