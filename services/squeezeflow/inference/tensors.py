"""Tensors of the Open Inference Protocol ↔ numpy arrays, under contract names, in the file's own element types.

Nothing is scaled, quantized or cast here: a tensor that is not what the file takes is refused, and the message tells
what came and what is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from squeezeflow.core.datatypes import CONTENTS, DATATYPES
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.oip import open_inference_pb2 as oip
from squeezeflow.v1 import contract_pb2

_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
# In the protocol, but no TFLite file of ours takes them.
_REFUSED = frozenset({"BYTES", "BF16"})


def datatype(tensor: contract_pb2.TensorContract) -> str:
    """Gives the protocol's word for a tensor's element type.

    Raises:
        SqueezeflowError: UNSUPPORTED_INPUT when the protocol has none (complex numbers, strings).
    """
    if tensor.dtype not in DATATYPES:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"tensor {tensor.name} is {tensor.dtype}, which the Open Inference Protocol cannot carry here: "
            "serve a model with numeric inputs and outputs",
            metadata={"tensor": tensor.name, "dtype": tensor.dtype},
        )
    return DATATYPES[tensor.dtype]


def describe(tensors: Iterable[contract_pb2.TensorContract]) -> list[oip.ModelMetadataResponse.TensorMetadata]:
    """Gives tensors as ModelMetadata tells them: contract names, the file's element types, -1 for free axes."""
    return [oip.ModelMetadataResponse.TensorMetadata(name=t.name, datatype=datatype(t), shape=t.shape) for t in tensors]


def read_inputs(request: oip.ModelInferRequest, contract: contract_pb2.Contract) -> dict[str, np.ndarray]:
    """Gives a request's inputs as arrays by contract name, raw or typed.

    Raises:
        SqueezeflowError: DATA_MISMATCH naming the tensor, what came and what is wanted; UNSUPPORTED_INPUT for BYTES
            and BF16; INVALID_PARAMETER when raw and typed contents are mixed.
    """
    wanted = {tensor.name: tensor for tensor in contract.inputs}
    _check_names([tensor.name for tensor in request.inputs], wanted)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise SqueezeflowError(
            "DATA_MISMATCH",
            f"raw_input_contents has {len(raw)} items for {len(request.inputs)} inputs: send one for each input",
        )
    arrays = {}
    for index, tensor in enumerate(request.inputs):
        shape = _check_tensor(tensor, wanted[tensor.name])
        if not raw:
            arrays[tensor.name] = _typed(tensor, wanted[tensor.name].dtype, shape)
        elif tensor.HasField("contents"):
            raise SqueezeflowError(
                "INVALID_PARAMETER",
                f"input {tensor.name} has contents beside raw_input_contents: send one of them",
                metadata={"tensor": tensor.name},
            )
        else:
            arrays[tensor.name] = _from_bytes(tensor.name, raw[index], wanted[tensor.name].dtype, shape)
    return arrays


def requested_outputs(request: oip.ModelInferRequest, contract: contract_pb2.Contract) -> tuple[str, ...]:
    """Gives the names of the outputs to return, in the order asked for; all in the contract's order by default.

    Raises:
        SqueezeflowError: DATA_MISMATCH for a name that the contract does not have, or twice the same.
    """
    names = tuple(tensor.name for tensor in contract.outputs)
    asked = tuple(tensor.name for tensor in request.outputs)
    for name in asked:
        if name not in names:
            raise _mismatch(name, f"output {name} is not of this model: it has {_listing(names)}")
    if len(set(asked)) != len(asked):
        raise SqueezeflowError("DATA_MISMATCH", f"outputs names a tensor twice: {_listing(asked)}")
    return asked or names


def write_outputs(response: oip.ModelInferResponse, outputs: Mapping[str, np.ndarray], raw: bool) -> None:
    """Adds arrays to a response, raw or typed; raw anyway when an array has no typed form (float16)."""
    raw = raw or any(array.dtype.name not in CONTENTS for array in outputs.values())
    for name, array in outputs.items():
        tensor = response.outputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        if raw:
            response.raw_output_contents.append(_little_endian(array).tobytes())
        else:
            getattr(tensor.contents, CONTENTS[array.dtype.name]).extend(array.ravel().tolist())


def _check_names(given: Sequence[str], wanted: Mapping[str, contract_pb2.TensorContract]) -> None:
    for name in given:
        if name not in wanted:
            raise _mismatch(name, f"input {name} is not of this model: it takes {_listing(wanted)}")
        if given.count(name) > 1:
            raise _mismatch(name, f"input {name} is given {given.count(name)} times: give it once")
    for name in wanted:
        if name not in given:
            raise _mismatch(name, f"input {name} is missing: the model takes {_listing(wanted)}")


def _check_tensor(
    tensor: oip.ModelInferRequest.InferInputTensor, wanted: contract_pb2.TensorContract
) -> tuple[int, ...]:
    """Checks element type and shape of an input; gives its shape."""
    if tensor.datatype in _REFUSED:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"input {tensor.name} is sent as {tensor.datatype}, which no model here takes: send {datatype(wanted)}",
            metadata={"tensor": tensor.name, "got": tensor.datatype, "wanted": datatype(wanted)},
        )
    if tensor.datatype != datatype(wanted):
        known = "" if tensor.datatype in _DTYPES else ", which is no datatype of the protocol"
        raise _mismatch(
            tensor.name,
            f"input {tensor.name} is sent as {tensor.datatype or 'nothing'}{known}: the file takes {datatype(wanted)}",
            got=tensor.datatype,
            wanted=datatype(wanted),
        )
    shape, axes = tuple(tensor.shape), tuple(wanted.shape)
    # The batch axis takes any length even where the file fixes it: the samples are then run in parts.
    free = [axis == -1 or place == 0 for place, axis in enumerate(axes)]
    fits = len(shape) == len(axes) and all(
        length >= 1 if open_ else length == axis for length, axis, open_ in zip(shape, axes, free, strict=True)
    )
    if not fits:
        raise _mismatch(
            tensor.name,
            f"input {tensor.name} has shape {list(shape)}: the model takes {list(axes)}, and 1 or more along the first "
            "axis and where -1 stands",
            got=list(shape),
            wanted=list(axes),
        )
    return shape


def _from_bytes(name: str, data: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) != wanted:
        raise _mismatch(
            name,
            f"input {name} has {len(data)} raw bytes: shape {list(shape)} of {DATATYPES[dtype]} needs {wanted}",
            got=len(data),
            wanted=wanted,
        )
    if dtype == "bool":
        # A byte that is neither 0 nor 1 is no numpy bool.
        return np.not_equal(np.frombuffer(data, np.uint8), 0).reshape(shape)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype, copy=False)


def _typed(tensor: oip.ModelInferRequest.InferInputTensor, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    name = tensor.name
    if dtype not in CONTENTS:
        raise _mismatch(name, f"input {name} is {DATATYPES[dtype]}, which has no typed form: use raw_input_contents")
    field = CONTENTS[dtype]
    for other, _ in tensor.contents.ListFields():
        if other.name != field:
            raise _mismatch(
                name,
                f"input {name} has {other.name}: {DATATYPES[dtype]} belongs into {field}",
                got=other.name,
                wanted=field,
            )
    values = getattr(tensor.contents, field)
    if len(values) != math.prod(shape):
        raise _mismatch(
            name,
            f"input {name} has {len(values)} elements: shape {list(shape)} needs {math.prod(shape)}",
            got=len(values),
            wanted=math.prod(shape),
        )
    if np.dtype(dtype).kind in "iu":
        return _in_range(name, values, dtype).reshape(shape)
    return np.fromiter(values, dtype, len(values)).reshape(shape)


def _in_range(name: str, values: Sequence[int], dtype: str) -> np.ndarray:
    """Gives integers as an array of their type; the wire's wider lists can hold values that do not fit."""
    wide = np.fromiter(values, "uint64" if dtype.startswith("uint") else "int64", len(values))
    bounds = np.iinfo(dtype)
    wrong = np.flatnonzero((wide < bounds.min) | (wide > bounds.max))
    if wrong.size:
        raise _mismatch(
            name,
            f"input {name}: element {wrong[0]} is {wide[wrong[0]]}, outside {DATATYPES[dtype]}",
            got=int(wide[wrong[0]]),
            wanted=f"{bounds.min} to {bounds.max}",
        )
    return wide.astype(dtype)


def _little_endian(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _mismatch(name: str, message: str, **details: object) -> SqueezeflowError:
    return SqueezeflowError("DATA_MISMATCH", message, metadata={"tensor": name, **details})


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names)
