"""Bounded reading of TFLite's flatbuffer.

The generated accessors follow offsets without looking: damaged ones raise anything, point anywhere, or name vectors of
four billion elements. So every vector is counted against a budget that grows with the file, every index is checked, and
whatever an accessor raises means one thing: the file is malformed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from squeezeflow.core.tflite.layout import FLEX_PREFIX, Operator, Signature, Subgraph, Tensor
from squeezeflow.core.tflite.values import ELEMENT_BITS, FLOATS, constant_values

IDENTIFIER = b"TFL3"
MAX_RANK = 16
# Elements of an honest file take bytes of their own; this is slack for the little that writers share.
ELEMENTS_PER_BYTE = 4
# Tensors may share values (one copy for several signatures); a million tensors that share them are an attack on whoever
# counts zeros.
SHARED_VALUES = 64
# Sparse tensors, strings and handles do not fill their shape.
UNSIZED = frozenset({"string", "resource", "variant"})


class MalformedError(Exception):
    """What is wrong with the bytes."""


@dataclass(frozen=True)
class Contents:
    """Everything that is read of a file."""

    subgraphs: tuple[Subgraph, ...]
    signatures: tuple[Signature, ...]


def read_contents(data: bytes) -> Contents:
    """Reads a whole file. Errors: MalformedError, and nothing else, whatever the bytes."""
    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise MalformedError("it does not begin like a TFLite file" if data else "it is empty")
    from ai_edge_litert import schema_py_generated as schema

    try:
        return _Reader(data, schema).contents()
    except MalformedError:
        raise
    except Exception as error:  # struct, numpy, index, type and unicode errors of accessors on damaged offsets
        raise MalformedError(f"its structure is damaged: {type(error).__name__}") from error


class _Reader:
    def __init__(self, data: bytes, schema: Any) -> None:
        self.schema = schema
        self.data = data
        self.budget = len(data) * ELEMENTS_PER_BYTE + 4096
        self.value_budget = len(data) * SHARED_VALUES
        self.model = schema.Model.GetRootAs(data, 0)

    def contents(self) -> Contents:
        buffers = [self._buffer(buffer) for buffer in self._tables(self.model.BuffersLength(), self.model.Buffers)]
        codes = self._tables(self.model.OperatorCodesLength(), self.model.OperatorCodes)
        names = [self._operator_name(code) for code in codes]
        graphs = self._tables(self.model.SubgraphsLength(), self.model.Subgraphs)
        if not graphs:
            raise MalformedError("it has no graph")
        subgraphs = tuple(self._subgraph(graph, buffers, names) for graph in graphs)
        definitions = self._tables(self.model.SignatureDefsLength(), self.model.SignatureDefs)
        return Contents(subgraphs, tuple(self._signature(definition, subgraphs) for definition in definitions))

    def _spend(self, count: int) -> None:
        self.budget -= count
        if count < 0 or self.budget < 0:
            raise MalformedError("it names more elements than it has bytes")

    def _tables(self, length: int, get: Callable[[int], Any]) -> list[Any]:
        self._spend(length)
        return [get(index) for index in range(length)]

    def _numbers(self, length: int, as_numpy: Callable[[], Any]) -> tuple[Any, ...]:
        self._spend(length)
        return tuple(as_numpy().tolist()) if length else ()

    def _text(self, text: bytes | None) -> str:
        self._spend(len(text or b""))
        return (text or b"").decode(errors="replace")

    def _index(self, index: int, length: int, what: str) -> int:
        if not 0 <= index < length:
            raise MalformedError(f"{what} {index} does not exist")
        return index

    def _buffer(self, buffer: Any) -> memoryview | None:
        if buffer.Offset() > 1:
            # Files of more than 2 GB keep their values behind the flatbuffer.
            start, size = buffer.Offset(), buffer.Size()
            if start + size > len(self.data):
                raise MalformedError("a buffer lies outside the file")
            return memoryview(self.data)[start : start + size]
        self._spend(buffer.DataLength())
        return memoryview(buffer.DataAsNumpy()) if buffer.DataLength() else None

    def _operator_name(self, code: Any) -> tuple[str, bool]:
        # The field was one byte once; newer operators leave a placeholder there.
        number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
        name = _builtin_names().get(number, f"BUILTIN_{number}")
        custom = self._text(code.CustomCode())
        return (custom or name, True) if name == "CUSTOM" else (name, False)

    def _subgraph(self, graph: Any, buffers: list[memoryview | None], names: list[tuple[str, bool]]) -> Subgraph:
        tables = self._tables(graph.TensorsLength(), graph.Tensors)
        plain = [self._tensor(index, table, buffers) for index, table in enumerate(tables)]
        tensors = tuple(self._with_blocks(tensor, table, plain) for tensor, table in zip(plain, tables, strict=True))
        steps = self._tables(graph.OperatorsLength(), graph.Operators)
        operators = tuple(self._operator(index, step, names, len(tensors)) for index, step in enumerate(steps))
        inputs = self._numbers(graph.InputsLength(), graph.InputsAsNumpy)
        outputs = self._numbers(graph.OutputsLength(), graph.OutputsAsNumpy)
        for index in (*inputs, *outputs):
            self._index(index, len(tensors), "tensor")
        return Subgraph(tensors, operators, inputs, outputs)

    def _operator(self, index: int, step: Any, names: list[tuple[str, bool]], tensors: int) -> Operator:
        name, custom = names[self._index(step.OpcodeIndex(), len(names), "operator code")]
        inputs = self._numbers(step.InputsLength(), step.InputsAsNumpy)
        outputs = self._numbers(step.OutputsLength(), step.OutputsAsNumpy)
        for tensor in (*(number for number in inputs if number != -1), *outputs):
            self._index(tensor, tensors, "tensor")
        return Operator(index, name, inputs, outputs, custom, name == "BATCH_MATMUL" and self._adjoint(step))

    def _adjoint(self, step: Any) -> bool:
        table = step.BuiltinOptions()
        if table is None or step.BuiltinOptionsType() != self.schema.BuiltinOptions.BatchMatMulOptions:
            return False
        options = self.schema.BatchMatMulOptions()
        options.Init(table.Bytes, table.Pos)
        return bool(options.AdjY())

    def _tensor(self, index: int, table: Any, buffers: list[memoryview | None]) -> Tensor:
        if table.ExternalBuffer():
            raise MalformedError("it keeps values in another file")
        dtype = _type_names().get(table.Type())
        if dtype is None:
            raise MalformedError(f"tensor {index} has the unknown type {table.Type()}")
        stored = self._shape(table.ShapeLength(), table.ShapeAsNumpy)
        shape = self._shape(table.ShapeSignatureLength(), table.ShapeSignatureAsNumpy) or stored
        if len(shape) != len(stored):
            raise MalformedError(f"tensor {index} has two ranks")
        buffer = buffers[self._index(table.Buffer(), len(buffers), "buffer")] if table.Buffer() else None
        sparse = table.Sparsity() is not None
        self.value_budget -= len(buffer or b"")
        if self.value_budget < 0:
            raise MalformedError("too many tensors share their values")
        if buffer is not None and dtype not in UNSIZED and not _fills(stored, ELEMENT_BITS[dtype], len(buffer), sparse):
            raise MalformedError(f"tensor {index} says {dtype} {list(stored)} and holds {len(buffer)} bytes")
        scales, zero_points, dimension = self._quantization(index, table.Quantization(), stored)
        name = self._text(table.Name())
        variable = bool(table.IsVariable())
        return Tensor(index, name, dtype, shape, stored, scales, zero_points, dimension, buffer, variable, sparse)

    def _shape(self, length: int, as_numpy: Callable[[], Any]) -> tuple[int, ...]:
        if length > MAX_RANK:
            raise MalformedError(f"a tensor has {length} axes")
        shape = self._numbers(length, as_numpy)
        if any(size < -1 for size in shape):
            raise MalformedError(f"a tensor has the shape {list(shape)}")
        return shape

    def _quantization(
        self, index: int, table: Any, shape: tuple[int, ...]
    ) -> tuple[tuple[float, ...], tuple[int, ...], int]:
        if table is None or not table.ScaleLength():
            return (), (), -1
        scales = self._numbers(table.ScaleLength(), table.ScaleAsNumpy)
        zero_points = self._numbers(table.ZeroPointLength(), table.ZeroPointAsNumpy) or (0,)
        if not all(math.isfinite(scale) for scale in scales):
            raise MalformedError(f"tensor {index} has a scale that is not finite")
        if len(zero_points) == 1:
            zero_points *= len(scales)
        if len(zero_points) != len(scales):
            raise MalformedError(f"tensor {index} has {len(scales)} scales and {len(zero_points)} zero points")
        if len(scales) == 1:
            return scales, zero_points, -1
        dimension = self._index(table.QuantizedDimension(), len(shape), f"tensor {index}: axis")
        if shape[dimension] != len(scales):
            raise MalformedError(f"tensor {index} has {len(scales)} scales along an axis of {shape[dimension]}")
        return scales, zero_points, dimension

    def _with_blocks(self, tensor: Tensor, table: Any, tensors: list[Tensor]) -> Tensor:
        """Gives the tensor with the scales of its blocks, which are the values of another tensor."""
        quantization = table.Quantization()
        if quantization is None or quantization.DetailsType() != self.schema.QuantizationDetails.BlockwiseQuantization:
            return tensor
        found = quantization.Details()
        details = self.schema.BlockwiseQuantization()
        details.Init(found.Bytes, found.Pos)
        size, length = details.BlockSize(), tensor.stored_shape[-1] if tensor.stored_shape else 0
        if size <= 0 or length % size:
            raise MalformedError(f"tensor {tensor.index} has blocks of {size} along an axis of {length}")
        if details.ZeroPoints() > 0:
            raise MalformedError(f"tensor {tensor.index} has zero points by block")
        holder = tensors[self._index(details.Scales(), len(tensors), f"tensor {tensor.index}: scales")]
        values = constant_values(holder) if holder.dtype in FLOATS else None
        if values is None or values.size * size != tensor.size:
            raise MalformedError(f"tensor {tensor.index} does not have one scale a block of {size}")
        scales = self._numbers(values.size, lambda: values.reshape(-1))
        if not all(math.isfinite(scale) for scale in scales):
            raise MalformedError(f"tensor {tensor.index} has a scale that is not finite")
        return replace(tensor, scales=scales, zero_points=(0,) * len(scales), quantized_dimension=-1, block_size=size)

    def _signature(self, definition: Any, subgraphs: tuple[Subgraph, ...]) -> Signature:
        number = self._index(definition.SubgraphIndex(), len(subgraphs), "graph")
        count = len(subgraphs[number].tensors)
        sides = [
            {
                self._text(entry.Name()): self._index(entry.TensorIndex(), count, "tensor")
                for entry in self._tables(length, get)
            }
            for length, get in (
                (definition.InputsLength(), definition.Inputs),
                (definition.OutputsLength(), definition.Outputs),
            )
        ]
        return Signature(self._text(definition.SignatureKey()), number, sides[0], sides[1])


def _fills(shape: tuple[int, ...], bits: int, size: int, sparse: bool) -> bool:
    if any(length < 0 for length in shape):
        return False
    needed = (math.prod(shape) * bits + 7) // 8
    # A sparse tensor keeps some of its blocks, each of whole elements.
    return size <= needed and size * 8 % bits == 0 if sparse else size == needed


@cache
def _builtin_names() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}


@cache
def _type_names() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)}


def is_flex(name: str) -> bool:
    """Tells whether a custom operator needs TensorFlow's own kernels."""
    return name.startswith(FLEX_PREFIX)
