"""Biases of int16x8 files, set right where several products share one.

A bias has the scale of what it is added to: that of the input times that of the kernel. Steps of an unrolled layer
share a kernel and a bias, while each step's input has a scale of its own. For int16 the converter keeps the one bias
with the scale of one step (for int8 it makes one for each step), and LiteRT adds it as it is: the other steps compute
with another bias than the model's (seen: a trained GRU with 4 dB in place of 40).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from squeezeflow.core.tflite.compaction import compact

# Scales are products of floats: closer than this they are the same.
SAME = 1e-5
_BIAS = 2
_PRODUCTS = frozenset(
    {
        schema.BuiltinOperator.FULLY_CONNECTED,
        schema.BuiltinOperator.CONV_2D,
        schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    }
)


def set_right(target: Path) -> None:
    """Writes an int16x8 file again where a bias in it has not the scale of its product."""
    data = target.read_bytes()
    made = rescaled(data)
    if made != data:
        target.write_bytes(compact(made))


def rescaled(data: bytes) -> bytes:
    """Gives an int16x8 file in which each product that shares a bias of another scale has one of its own.

    Layers that are used in several places share one, too.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    changed = False
    for graph in model.subgraphs:
        for operator in graph.operators:
            if codes[operator.opcodeIndex] in _PRODUCTS:
                changed = _rescale(model, graph, operator) or changed
    if not changed:
        return data
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _rescale(model: Any, graph: Any, operator: Any) -> bool:
    if len(operator.inputs) <= _BIAS or operator.inputs[_BIAS] < 0:
        return False
    given, kernel, bias = (graph.tensors[index] for index in operator.inputs[: _BIAS + 1])
    if bias.type != schema.TensorType.INT64 or given.type != schema.TensorType.INT16:
        return False
    scale, held = _scales(given) * _scales(kernel), _scales(bias)
    buffer = model.buffers[bias.buffer].data
    if buffer is None or not np.all(scale) or not np.isfinite([*scale, *held]).all():
        return False
    if np.all(np.abs(held - scale) <= SAME * scale):
        return False
    values = np.frombuffer(bytes(bytearray(buffer)), "<i8") * held / scale
    own = copy.deepcopy(bias)
    own.quantization.scale = np.broadcast_to(scale, held.shape).astype(np.float32)
    own.buffer = len(model.buffers)
    stored = schema.BufferT()
    stored.data = np.frombuffer(np.round(values).astype("<i8").tobytes(), np.uint8)
    model.buffers.append(stored)
    operator.inputs = [*operator.inputs[:_BIAS], len(graph.tensors), *operator.inputs[_BIAS + 1 :]]
    graph.tensors.append(own)
    return True


def _scales(tensor: Any) -> np.ndarray:
    """Gives a tensor's scales; what has none has one that is not a number."""
    quantization = tensor.quantization
    scales = None if quantization is None else quantization.scale
    return np.atleast_1d(np.asarray(np.nan if scales is None else scales, np.float64))
