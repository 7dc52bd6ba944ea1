"""numpy arrays as Open Inference Protocol v2 messages and back, always in the raw form."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from squeezeflow.core.datatypes import CONTENTS, DATATYPES
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.oip import open_inference_pb2 as oip

_DTYPES = {datatype: np.dtype(name).newbyteorder("<") for name, datatype in DATATYPES.items()}
_CONTENTS = {DATATYPES[name]: contents for name, contents in CONTENTS.items()}


def datatype(name: str, array: np.ndarray) -> str:
    """Gives the protocol's word for an array's element type; DATA_MISMATCH where it has none."""
    if array.dtype.name not in DATATYPES:
        raise SqueezeflowError(
            "DATA_MISMATCH",
            f"array {name} holds {array.dtype}: numbers and truth values can be sent",
            metadata={"array": name},
        )
    return DATATYPES[array.dtype.name]


def dtype_of(word: str) -> np.dtype:
    """Gives the little-endian element type that the protocol's word stands for."""
    if word not in _DTYPES:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT", f"tensors of type {word} are not taken: numbers and truth values are"
        )
    return _DTYPES[word]


def infer_request(model_name: str, inputs: Mapping[str, np.ndarray]) -> oip.ModelInferRequest:
    """Gives the request that feeds arrays, in the element types they have.

    Args:
        model_name: a loaded name, or an artifact's digest.
        inputs: by contract name; batch axis first.
    """
    request = oip.ModelInferRequest(model_name=model_name)
    for name, values in inputs.items():
        request.inputs.add(name=name, datatype=datatype(name, values), shape=values.shape)
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        request.raw_input_contents.append(little.tobytes())
    return request


def outputs_of(response: oip.ModelInferResponse) -> dict[str, np.ndarray]:
    """Gives a response's tensors as arrays in the file's own element types, by contract name."""
    arrays = {}
    for index, tensor in enumerate(response.outputs):
        dtype = dtype_of(tensor.datatype)
        if index < len(response.raw_output_contents):
            flat = np.frombuffer(response.raw_output_contents[index], dtype=dtype)
        else:
            flat = np.array(getattr(tensor.contents, _CONTENTS[tensor.datatype]), dtype=dtype)
        if flat.size != math.prod(tensor.shape):
            raise SqueezeflowError(
                "INTERNAL", f"output {tensor.name} has {flat.size} elements for shape {list(tensor.shape)}"
            )
        arrays[tensor.name] = flat.reshape(tuple(tensor.shape))
    return arrays


def add_output(response: oip.ModelInferResponse, name: str, values: np.ndarray) -> None:
    """Adds an output with typed contents; float16, which has none, goes as FP32."""
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    tensor = response.outputs.add(name=name, datatype=datatype(name, values), shape=values.shape)
    getattr(tensor.contents, _CONTENTS[tensor.datatype]).extend(values.ravel().tolist())
