"""The same model in fewer bytes: what converters write beside the model is left out.

That are names that tell every operation a tensor was fused of, a buffer for every tensor that is computed, quantization
without scales, and a record of the conversion. In files of some ten kilobytes, deflated, it is a few percent. What is
computed stays as it is, bit for bit: graphs, operators and their options, constants, types, shapes, scales, signatures;
all of that is compared before the bytes are handed out.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from squeezeflow.core.tflite.flatbuffer import MalformedError, read_contents
from squeezeflow.core.tflite.naming import short_names
from squeezeflow.core.tflite.packing import pack

# In larger files all of this is less than one byte in ten thousand.
LARGEST = 64 << 20
# In these, how constants are ordered makes no difference that would be worth deflating them for.
LARGEST_TRIED = 1 << 20
# The converter's own: its version and settings, which action records hold. Who adds other metadata means it.
RECORD = b"CONVERSION_METADATA"
DESCRIPTION = b"MLIR Converted."
# Where a file keeps what the schema's objects do not carry along, or carry as places in the file.
_OPTIONS = (("builtinOptions", "builtinOptionsType"), ("builtinOptions2", "builtinOptions2Type"))


def compact(data: bytes, *, rename: bool = True) -> bytes:
    """Gives a TFLite file that is the same model in fewer bytes; the same file gives the same bytes.

    Args:
        data: a file. It is given back as it is where it is larger than `LARGEST`, damaged, keeps values behind the
            flatbuffer or in other files, has options that the schema does not know, or would not become smaller.
        rename: give tensors short names; False: names stay. Those of inputs and outputs always do.
    """
    if len(data) > LARGEST:
        return data
    try:
        contents = read_contents(data)
        model = _unpacked(data)
        if not _self_contained(model):
            return data
        if rename:
            for graph, names in zip(model.subgraphs, short_names(contents.subgraphs, contents.signatures), strict=True):
                for tensor, name in zip(graph.tensors or (), names, strict=True):
                    tensor.name = name.encode()
        _leave_out(model)
        made = _smallest(model, data)
        # What is made is read again, as whoever gets it will.
        read_contents(made)
    except MalformedError:
        # Whoever proves the file says so.
        return data
    return made if same_model(data, made) else data


def _smallest(model: Any, data: bytes) -> bytes:
    """Gives the model in the form that deflates best and has no more raw bytes than it had; `data` where none has."""
    forms = ({}, {"large_first": True}) if len(data) <= LARGEST_TRIED else ({},)
    made = [pack(model, len(data), **form) for form in forms]
    if all(len(form) > len(data) for form in made):
        made = [pack(model, len(data), share_tables=True)]
    fitting = [form for form in made if len(form) <= len(data)] or [data]
    if len(data) > LARGEST_TRIED:
        return fitting[0]
    # Level 9 takes ten times as long where most values are zero, and prefers the same forms.
    return min([*fitting, data], key=lambda form: len(zlib.compress(form, 6)))


def same_model(first: bytes, second: bytes) -> bool:
    """Tells whether two files are one model: all that is computed with, and signatures, but for names of tensors."""
    one, other = _unpacked(first), _unpacked(second)
    return bool(
        _same(one.version, other.version)
        and _same(one.operatorCodes, other.operatorCodes)
        and _same(one.signatureDefs, other.signatureDefs)
        and len(one.subgraphs) == len(other.subgraphs)
        and all(_same_graph(*graphs, one, other) for graphs in zip(one.subgraphs, other.subgraphs, strict=True))
    )


def _unpacked(data: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def _self_contained(model: Any) -> bool:
    """Tells whether all of the file is in the tables, in parts that the schema knows."""
    if model.metadataBuffer is not None or model.externalBuffers or model.externalBufferGroups:
        return False
    if any(buffer.offset or buffer.size for buffer in model.buffers or ()):
        return False
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            unknown = any(getattr(operator, kind) and getattr(operator, name) is None for name, kind in _OPTIONS)
            if unknown or operator.largeCustomOptionsOffset or operator.largeCustomOptionsSize:
                return False
        if any(tensor.externalBuffer for tensor in graph.tensors or ()):
            return False
    return bool(model.buffers)


def _leave_out(model: Any) -> None:
    """Takes out of a model what it does not need."""
    if model.description == DESCRIPTION:
        model.description = None
    model.metadata = [entry for entry in model.metadata or () if entry.name != RECORD] or None
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors or ()]
    for tensor in tensors:
        if _says_nothing(tensor.quantization):
            tensor.quantization = None
    users = [*tensors, *(model.metadata or ())]
    used = {user.buffer for user in users}
    # The first buffer is empty by convention, and the one of tensors that are computed.
    left = [0, *(n for n in sorted(used) if n and model.buffers[n].data is not None)]
    places = {number: place for place, number in enumerate(left)}
    for user in users:
        user.buffer = places.get(user.buffer, 0)
    model.buffers = [model.buffers[number] for number in left]


def _says_nothing(quantization: Any) -> bool:
    arrays = ("min", "max", "scale", "zeroPoint")
    return (
        quantization is not None
        and not quantization.detailsType
        and not any(getattr(quantization, name) is not None for name in arrays)
    )


def _same_graph(one: Any, other: Any, first: Any, second: Any) -> bool:
    tensors, others = one.tensors or (), other.tensors or ()
    return (
        _same({**vars(one), "tensors": None}, {**vars(other), "tensors": None})
        and len(tensors) == len(others)
        and all(
            _same(_without_names(tensor, first), _without_names(match, second))
            for tensor, match in zip(tensors, others, strict=True)
        )
    )


def _without_names(tensor: Any, model: Any) -> dict[str, Any]:
    """Gives a tensor with its values in place of their number, and without its name."""
    quantization = None if _says_nothing(tensor.quantization) else tensor.quantization
    values = model.buffers[tensor.buffer].data
    return {**vars(tensor), "name": None, "buffer": values, "quantization": quantization}


def _same(one: Any, other: Any) -> bool:
    """Compares what the schema's objects are made of, floats by their bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, Sequence) and not isinstance(one, bytes):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    if hasattr(one, "__dict__"):
        return _same(vars(one), vars(other))
    return bool(one == other or (one != one and other != other))
