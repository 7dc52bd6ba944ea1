from __future__ import annotations

import numpy as np
import pytest

from squeezeflow.client import tensors
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.oip import open_inference_pb2 as oip

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_survives_the_way_through_the_protocol(dtype):
    values = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    request = tensors.infer_request("m", {"x": values.T})
    assert list(request.inputs[0].shape) == [4, 3]
    response = oip.ModelInferResponse(raw_output_contents=request.raw_input_contents)
    response.outputs.add(name="x", datatype=request.inputs[0].datatype, shape=request.inputs[0].shape)
    back = tensors.outputs_of(response)["x"]
    assert back.dtype.name == dtype
    np.testing.assert_array_equal(back, values.T)


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - {"float16"}))
def test_typed_contents_hold_the_same_values(dtype):
    values = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    response = oip.ModelInferResponse()
    tensors.add_output(response, "y", values)
    back = tensors.outputs_of(response)["y"]
    assert back.dtype.name == dtype
    np.testing.assert_array_equal(back, values)


def test_big_endian_arrays_are_sent_little_endian():
    request = tensors.infer_request("m", {"x": np.array([1, 2], dtype=">i4")})
    assert request.raw_input_contents[0] == b"\x01\0\0\0\x02\0\0\0"


def test_a_scalar_axis_is_kept():
    assert list(tensors.infer_request("m", {"x": np.float32(3)[None]}).inputs[0].shape) == [1]


def test_what_the_protocol_cannot_carry_is_refused_with_the_array_s_name():
    with pytest.raises(SqueezeflowError, match="array x") as caught:
        tensors.infer_request("m", {"x": np.array(["text"])})
    assert caught.value.reason == "DATA_MISMATCH"


def test_an_output_whose_bytes_do_not_fill_its_shape_is_refused():
    response = oip.ModelInferResponse(raw_output_contents=[b"\0" * 8])
    response.outputs.add(name="y", datatype="FP32", shape=[3])
    with pytest.raises(SqueezeflowError, match="2 elements"):
        tensors.outputs_of(response)
