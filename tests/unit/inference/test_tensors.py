from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from squeezeflow.core.datatypes import DATATYPES
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.inference.tensors import describe, read_inputs, requested_outputs, write_outputs
from squeezeflow.oip import open_inference_pb2 as oip
from squeezeflow.v1 import contract_pb2

CONTENTS = {
    "bool": "bool_contents",
    "int8": "int_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "uint32": "uint_contents",
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
}


def contract(**inputs: tuple[str, list[int]]) -> contract_pb2.Contract:
    tensors = [contract_pb2.TensorContract(name=n, dtype=dtype, shape=shape) for n, (dtype, shape) in inputs.items()]
    outputs = [contract_pb2.TensorContract(name=n, dtype="float32", shape=[-1, 2]) for n in ("first", "second")]
    return contract_pb2.Contract(inputs=tensors, outputs=outputs)


def extreme(dtype: str) -> np.ndarray:
    if dtype == "bool":
        return np.array([[True, False]])
    if np.dtype(dtype).kind == "f":
        return np.array([[-1.5, np.finfo(dtype).max]], dtype)
    return np.array([[np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype)


def typed(array: np.ndarray, **changes: Any) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype=DATATYPES[array.dtype.name], shape=array.shape)
    getattr(tensor.contents, CONTENTS[array.dtype.name]).extend(array.ravel().tolist())
    for field, value in changes.items():
        if field == "shape":
            tensor.ClearField("shape")
            tensor.shape.extend(value)
        else:
            setattr(tensor, field, value)
    return oip.ModelInferRequest(inputs=[tensor])


def raw(array: np.ndarray) -> oip.ModelInferRequest:
    tensor = {"name": "x", "datatype": DATATYPES[array.dtype.name], "shape": array.shape}
    return oip.ModelInferRequest(inputs=[tensor], raw_input_contents=[array.tobytes()])


def refused(request: oip.ModelInferRequest, model: contract_pb2.Contract) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        read_inputs(request, model)
    return caught.value


@pytest.mark.parametrize("dtype", CONTENTS)
def test_typed_contents_keep_every_value(dtype: str) -> None:
    array = extreme(dtype)
    read = read_inputs(typed(array), contract(x=(dtype, [-1, 2])))["x"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("dtype", DATATYPES)
def test_raw_contents_keep_every_value(dtype: str) -> None:
    array = extreme(dtype)
    read = read_inputs(raw(array), contract(x=(dtype, [-1, 2])))["x"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("dtype", DATATYPES)
@pytest.mark.parametrize("as_raw", [True, False])
def test_outputs_come_in_the_form_that_was_sent_and_half_floats_always_raw(dtype: str, as_raw: bool) -> None:
    array = extreme(dtype)
    response = oip.ModelInferResponse()
    write_outputs(response, {"y": array}, raw=as_raw)
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", DATATYPES[dtype], [1, 2])
    if as_raw or dtype == "float16":
        assert response.raw_output_contents[0] == array.tobytes()
        assert not output.HasField("contents")
    else:
        assert list(getattr(output.contents, CONTENTS[dtype])) == array.ravel().tolist()
        assert not response.raw_output_contents


def test_a_wrong_element_type_is_told_with_what_came_and_what_is_wanted() -> None:
    error = refused(raw(np.zeros((1, 2), "float32")), contract(x=("int8", [-1, 2])))
    assert error.reason == "DATA_MISMATCH"
    assert error.metadata == {"tensor": "x", "got": "FP32", "wanted": "INT8"}


@pytest.mark.parametrize("datatype", ["BYTES", "BF16"])
def test_element_types_that_no_model_takes_are_unsupported(datatype: str) -> None:
    error = refused(typed(np.zeros((1, 2), "float32"), datatype=datatype), contract(x=("float32", [-1, 2])))
    assert error.reason == "UNSUPPORTED_INPUT"
    assert "send FP32" in error.message


def test_a_model_whose_tensor_the_protocol_cannot_carry_is_unsupported() -> None:
    with pytest.raises(SqueezeflowError, match="UNSUPPORTED_INPUT: tensor x is complex64"):
        describe(contract(x=("complex64", [1])).inputs)


@pytest.mark.parametrize("shape", [[2], [1, 3], [1, 2, 1], [0, 2], [-1, 2]])
def test_a_wrong_shape_is_told_with_what_came_and_what_is_wanted(shape: list[int]) -> None:
    error = refused(typed(np.zeros((1, 2), "float32"), shape=shape), contract(x=("float32", [-1, 2])))
    assert error.reason == "DATA_MISMATCH"
    assert (error.metadata["got"], error.metadata["wanted"]) == (str(shape), "[-1, 2]")


@pytest.mark.parametrize("batch_axis", [-1, 1])
def test_a_batch_passes_also_where_the_file_fixes_it_to_one(batch_axis: int) -> None:
    array = np.arange(6, dtype="float32").reshape(3, 2)
    read = read_inputs(raw(array), contract(x=("float32", [batch_axis, 2])))
    np.testing.assert_array_equal(read["x"], array)


def test_lengths_that_do_not_fill_the_shape_are_told() -> None:
    model = contract(x=("float32", [-1, 2]))
    short = raw(np.zeros((1, 2), "float32"))
    short.raw_input_contents[0] = b"\0" * 7
    assert "7 raw bytes: shape [1, 2] of FP32 needs 8" in refused(short, model).message
    assert (
        "2 elements: shape [2, 2] needs 4" in refused(typed(np.zeros((1, 2), "float32"), shape=[2, 2]), model).message
    )


def test_a_value_outside_its_type_is_told_with_its_place() -> None:
    request = typed(np.zeros((1, 2), "int8"))
    request.inputs[0].contents.int_contents[1] = 128
    error = refused(request, contract(x=("int8", [-1, 2])))
    assert (error.reason, error.metadata["wanted"]) == ("DATA_MISMATCH", "-128 to 127")
    assert "element 1 is 128" in error.message


def test_values_in_the_list_of_another_type_are_refused() -> None:
    request = typed(np.zeros((1, 2), "float32"), datatype="INT8")
    error = refused(request, contract(x=("int8", [-1, 2])))
    assert (error.metadata["got"], error.metadata["wanted"]) == ("fp32_contents", "int_contents")


def test_raw_and_typed_contents_together_are_refused() -> None:
    request = typed(np.zeros((1, 2), "float32"))
    request.raw_input_contents.append(b"\0" * 8)
    assert refused(request, contract(x=("float32", [-1, 2]))).reason == "INVALID_PARAMETER"


def test_raw_contents_for_only_some_inputs_are_refused() -> None:
    request = raw(np.zeros((1, 2), "float32"))
    request.inputs.add(name="y", datatype="FP32", shape=[1, 2])
    error = refused(request, contract(x=("float32", [-1, 2]), y=("float32", [-1, 2])))
    assert "1 items for 2 inputs" in error.message


def test_names_bind_inputs_whatever_their_order() -> None:
    model = contract(x=("float32", [-1, 2]), z=("float32", [-1, 2]))
    request = oip.ModelInferRequest()
    for name, value in (("z", 2.0), ("x", 1.0)):
        request.inputs.add(name=name, datatype="FP32", shape=[1, 2])
        request.raw_input_contents.append(np.full((1, 2), value, "float32").tobytes())
    read = read_inputs(request, model)
    assert (read["x"][0, 0], read["z"][0, 0]) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["other"], "input other is not of this model: it takes x"),
        ([], "input x is missing"),
        (["x", "x"], "input x is given 2 times"),
    ],
)
def test_inputs_that_are_unknown_missing_or_doubled_are_told_by_name(names: list[str], told: str) -> None:
    request = oip.ModelInferRequest(inputs=[{"name": name, "datatype": "FP32", "shape": [1, 2]} for name in names])
    error = refused(request, contract(x=("float32", [-1, 2])))
    assert error.reason == "DATA_MISMATCH"
    assert told in error.message


def test_outputs_are_those_asked_for_in_their_order_else_all() -> None:
    model = contract(x=("float32", [-1, 2]))
    assert requested_outputs(oip.ModelInferRequest(), model) == ("first", "second")
    assert requested_outputs(oip.ModelInferRequest(outputs=[{"name": "second"}]), model) == ("second",)
    for wrong in (["third"], ["first", "first"]):
        with pytest.raises(SqueezeflowError, match="DATA_MISMATCH"):
            requested_outputs(oip.ModelInferRequest(outputs=[{"name": name} for name in wrong]), model)


def test_metadata_tells_contract_names_file_types_and_free_axes() -> None:
    (tensor,) = describe(contract(image=("uint8", [-1, 28, 28, 1])).inputs)
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("image", "UINT8", [-1, 28, 28, 1])
