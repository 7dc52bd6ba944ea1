"""Writes a TFLite file so that it is small as it lies, and smaller deflated.

Flatbuffers leave it to the writer where things go. Here equal strings and vectors are written once, and what is alike
lies together: tables, names and shapes, zero points, scales, constants by size, at last the places of sparse values.
A table may have its vtable before it also where another one has the same: both together are a repetition to deflate, a
distance to a shared vtable is not. That costs some raw bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt

IDENTIFIER = b"TFL3"
# Kernels read constants in place, in vectors of this many bytes; the schema asks for it.
ALIGNMENT = 16


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """Writes equal strings and vectors once, and aligns bytes."""

    def __init__(self, size: int, *, share_tables: bool) -> None:
        super().__init__(size)
        self._share_tables = share_tables
        self._strings: dict[bytes, int] = {}
        self._vectors: dict[tuple[str, bytes], int] = {}

    def CreateString(self, s: str | bytes, encoding: str = "utf-8", errors: str = "strict") -> int:
        text = s if isinstance(s, bytes) else s.encode(encoding, errors)
        if text not in self._strings:
            self._strings[text] = super().CreateString(text)
        return self._strings[text]

    def CreateNumpyVector(self, x: npt.NDArray[Any]) -> int:
        key = (x.dtype.str, x.tobytes())
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
        return super().StartVector(elemSize, numElems, ALIGNMENT if elemSize == 1 else alignment)

    def EndObject(self) -> Any:
        if not self._share_tables:
            self.vtables: dict[Any, int] = {}
        return super().EndObject()


def pack(model: Any, size: int, *, share_tables: bool = False, large_first: bool = False) -> bytes:
    """Gives the bytes of a `ModelT`; the same model gives the same bytes.

    Args:
        size: about how many bytes there will be.
        share_tables: equal vtables are written once: less raw, more deflated.
        large_first: the order of the constants.
    """
    builder = _Builder(size + (size >> 3) + 4096, share_tables=share_tables)
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors or ()]
    # Flatbuffers are written from the end: what is made first lies last.
    for values in _places(tensors):
        builder.CreateNumpyVector(values)
    constants = _largest_first([buffer.data for buffer in model.buffers if buffer.data is not None])
    for values in reversed(constants) if large_first else constants:
        builder.CreateNumpyVector(values)
    quantizations = [tensor.quantization for tensor in tensors if tensor.quantization is not None]
    for name in ("scale", "zeroPoint"):
        for values in _largest_first([v for q in quantizations if (v := getattr(q, name)) is not None]):
            builder.CreateNumpyVector(values)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _places(tensors: Sequence[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yields where the values of sparse tensors belong."""
    axes = [axis for tensor in tensors if tensor.sparsity is not None for axis in tensor.sparsity.dimMetadata or ()]
    for name in ("arraySegments", "arrayIndices"):
        yield from (np.asarray(found.values) for axis in axes if (found := getattr(axis, name)) is not None)


def _largest_first(arrays: list[Any]) -> list[npt.NDArray[Any]]:
    return sorted((np.asarray(array) for array in arrays), key=lambda array: -array.size)
