"""Contracts as stored bytes, and the small tensors in them.

A contract is kept as the canonical JSON of its message: the same contract always has the same digest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import json_format

from squeezeflow.core.canonical import canonical_json, message_json
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.tflite import Tensor, TfliteFile
from squeezeflow.v1 import contract_pb2

Array = npt.NDArray[Any]

# Element types that a contract's tensor may have, by numpy name; `string` cannot be run or bound.
DTYPES = frozenset(
    (
        *("float16", "float32", "float64", "bfloat16", "complex64", "string", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
)
INTEGERS = frozenset({"int8", "uint8", "int16"})
PROBABILITY_OPS = frozenset({"SOFTMAX", "LOGISTIC"})
# A contract holds names, shapes and a few samples; a larger file is something else.
MAX_BYTES = 256 << 20


def encode(contract: contract_pb2.Contract) -> bytes:
    """Gives the one stored form of a contract: canonical JSON with proto field names, UTF-8."""
    return canonical_json(message_json(contract)).encode()


def decode(source: bytes | Path) -> contract_pb2.Contract:
    """Reads a stored contract.

    Errors: MALFORMED_MODEL when it is anything but the form that `encode` writes.
    """
    if isinstance(source, Path):
        if source.stat().st_size > MAX_BYTES:
            raise _malformed(f"it has more than {MAX_BYTES} bytes")
        source = source.read_bytes()
    contract = contract_pb2.Contract()
    try:
        value = json.loads(source)
        json_format.ParseDict(value, contract)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        raise _malformed(str(error).splitlines()[0]) from error
    # ParseDict also takes camelCase names, null and explicit zeros: one meaning, one form.
    if message_json(contract) != value:
        raise _malformed("field names or values are not in their stored form")
    for tensor in [*contract.inputs, *contract.outputs]:
        if tensor.dtype not in DTYPES:
            raise _malformed(f"tensor {tensor.name} has the unknown dtype {tensor.dtype!r}")
        if any(size < -1 for size in tensor.shape):
            raise _malformed(f"tensor {tensor.name} has the shape {list(tensor.shape)}")
    return contract


def foreign(tflite: Path) -> contract_pb2.Contract:
    """Makes a contract from a TFLite file alone: names of its signature, where it has none those of its tensors.

    Errors: MALFORMED_MODEL.
    """
    return contract_of(TfliteFile.read(tflite))


def contract_of(file: TfliteFile) -> contract_pb2.Contract:
    """Makes a contract from a TFLite file that was read."""
    contract = contract_pb2.Contract(signature=file.signature.key if file.signature else "", foreign=True)
    inputs, outputs = file.input_names, file.output_names
    contract.inputs.extend(_tensor_contract(name, file.main.tensors[index]) for name, index in inputs.items())
    for name, index in outputs.items():
        output = _tensor_contract(name, file.main.tensors[index])
        output.meaning = "probabilities" if file.computing_operator(index) in PROBABILITY_OPS else ""
        contract.outputs.append(output)
    return contract


def _tensor_contract(name: str, tensor: Tensor) -> contract_pb2.TensorContract:
    contract = contract_pb2.TensorContract(name=name, signature_name=name, shape=tensor.shape, dtype=tensor.dtype)
    if len(tensor.scales) == 1 and tensor.dtype in INTEGERS:
        contract.quantization.scale, contract.quantization.zero_point = tensor.scales[0], tensor.zero_points[0]
    return contract


def real_dtype(tensor: contract_pb2.TensorContract) -> str:
    """Gives the numpy name of what the model means by the tensor: float32 where the file holds quantized integers."""
    return "float32" if tensor.HasField("quantization") else tensor.dtype


def tensor_value(array: Array) -> contract_pb2.TensorValue:
    """Gives an array as a message: row-major, little-endian."""
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"))
    return contract_pb2.TensorValue(shape=array.shape, dtype=array.dtype.name, data=little.tobytes())


def array(value: contract_pb2.TensorValue) -> Array:
    """Gives the array back.

    Errors: MALFORMED_MODEL when its dtype is unknown or its bytes do not fill its shape.
    """
    if value.dtype not in DTYPES - {"bfloat16", "string"}:
        raise _malformed(f"a tensor has the unknown dtype {value.dtype!r}")
    dtype = np.dtype(value.dtype)
    expected = dtype.itemsize
    for size in value.shape:
        expected *= size
    if any(size < 0 for size in value.shape) or expected != len(value.data):
        raise _malformed(f"{len(value.data)} bytes do not fill {value.dtype} of shape {list(value.shape)}")
    flat = np.frombuffer(value.data, dtype=dtype.newbyteorder("<"))
    return flat.astype(dtype).reshape(tuple(value.shape))


def _malformed(why: str) -> SqueezeflowError:
    return SqueezeflowError(
        "MALFORMED_MODEL",
        f"the contract cannot be read ({why}): give the contract artifact of the step that made the model",
    )
