"""The stored form of contracts, and the small tensors in them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import contract_pb2


def full_contract() -> contract_pb2.Contract:
    sample = contract_pb2.GoldenSample()
    sample.inputs["image"].CopyFrom(contracts.tensor_value(np.arange(4, dtype=np.float32).reshape(1, 2, 2)))
    sample.outputs["scores"].CopyFrom(contracts.tensor_value(np.array([[0.1, 0.9]], np.float32)))
    return contract_pb2.Contract(
        signature="serving_default",
        inputs=[
            contract_pb2.TensorContract(
                name="image",
                signature_name="x",
                shape=[-1, 2, 2],
                dtype="int8",
                quantization=contract_pb2.Quantization(scale=1 / 255, zero_point=-128),
                affine=contract_pb2.Affine(scale=[1 / 255], offset=[0]),
            )
        ],
        outputs=[
            contract_pb2.TensorContract(
                name="scores", signature_name="output_0", shape=[-1, 2], dtype="float32", meaning="probabilities"
            )
        ],
        labels=["Katze", "犬"],
        golden_samples=[sample],
    )


def test_a_contract_comes_back_as_it_was():
    assert contracts.decode(contracts.encode(full_contract())) == full_contract()


def test_a_contract_is_read_from_a_file(tmp_path):
    (tmp_path / "contract.json").write_bytes(contracts.encode(full_contract()))
    assert contracts.decode(tmp_path / "contract.json") == full_contract()


def test_the_stored_form_uses_proto_names_and_sorted_keys_without_spaces():
    text = contracts.encode(full_contract()).decode()
    assert '"signature_name":"x"' in text
    assert "犬" in text
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"text"',
        b'{"inputs":[{"name":1}]}',
        b'{"inputs":7}',
        b'{"unknown":1}',
        b'{"foreign":false}',
        b'{"inputs":[{"signatureName":"x"}]}',
        b'{"inputs":[{"name":"x","dtype":"float31"}]}',
        b'{"inputs":[{"name":"x","dtype":"int8","shape":[-2]}]}',
        b'{"golden_samples":[{"inputs":{"x":{"data":"!!"}}}]}',
        b"[" * 100_000,
    ],
)
def test_anything_else_is_a_malformed_model(stored):
    with pytest.raises(SqueezeflowError) as caught:
        contracts.decode(stored)
    assert caught.value.reason == "MALFORMED_MODEL"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"])
def test_small_tensors_come_back_with_shape_and_dtype(dtype):
    value = np.arange(6).reshape(1, 2, 3).astype(dtype)
    back = contracts.array(contracts.tensor_value(value))
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back, value)


def test_small_tensors_are_row_major_and_little_endian():
    value = np.asfortranarray(np.arange(4, dtype=">i4").reshape(2, 2))
    stored = contracts.tensor_value(value)
    assert stored.dtype == "int32"
    assert stored.data == np.arange(4, dtype="<i4").tobytes()


@pytest.mark.parametrize(
    "value",
    [
        contract_pb2.TensorValue(shape=[2], dtype="float32", data=b"1234"),
        contract_pb2.TensorValue(shape=[-1], dtype="float32", data=b"1234"),
        contract_pb2.TensorValue(shape=[1], dtype="object", data=b"1234"),
        contract_pb2.TensorValue(shape=[], dtype="string", data=b"1234"),
    ],
)
def test_tensors_that_do_not_fill_their_shape_are_refused(value):
    with pytest.raises(SqueezeflowError, match="MALFORMED_MODEL"):
        contracts.array(value)


def test_quantized_tensors_mean_floats():
    contract = full_contract()
    assert contracts.real_dtype(contract.inputs[0]) == "float32"
    assert contracts.real_dtype(contract_pb2.TensorContract(dtype="int32")) == "int32"
