"""TFLite files as flatbuffers: every number against what the converter wrote, and any bytes at all."""

from __future__ import annotations

import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.layer_models import FER, PITCH, layer_models

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.core.tflite.layout import Operator
from squeezeflow.core.tflite.values import real_values
from squeezeflow.core.tflite.weights import channel_axis


def read(name: str) -> TfliteFile:
    return TfliteFile.read(layer_models() / f"{name}.tflite")


def malformed(path: Path) -> str:
    with pytest.raises(SqueezeflowError) as caught:
        TfliteFile.read(path)
    assert caught.value.reason == "MALFORMED_MODEL"
    assert "\n" not in caught.value.message
    return caught.value.message


# Structure


@pytest.mark.parametrize("path", [FER, PITCH], ids=["fer", "basic pitch"])
def test_every_tensor_is_what_litert_says_it_is(path):
    from ai_edge_litert.interpreter import Interpreter

    file = TfliteFile.read(path)
    details = {detail["index"]: detail for detail in Interpreter(str(path)).get_tensor_details()}
    for tensor in file.main.tensors:
        detail = details[tensor.index]
        parameters = detail["quantization_parameters"]
        assert tensor.name == detail["name"]
        assert tensor.dtype == np.dtype(detail["dtype"]).name
        assert list(tensor.shape) == detail["shape_signature"].tolist()
        np.testing.assert_array_equal(tensor.scales, parameters["scales"])
        np.testing.assert_array_equal(tensor.zero_points, parameters["zero_points"])
        if len(tensor.scales) > 1:
            assert tensor.quantized_dimension == parameters["quantized_dimension"]


def test_operators_come_in_execution_order_with_their_tensors():
    file = read("cnn_float32")
    assert [operator.name for operator in file.operators] == [
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "RESHAPE",
        "FULLY_CONNECTED",
        "FULLY_CONNECTED",
        "SOFTMAX",
    ]
    assert file.operators[0].inputs[0] == file.inputs[0]
    assert file.operators[-1].outputs[0] == file.outputs[0]
    # The last layer has no bias: an input that is left out.
    assert -1 in file.operators[-2].inputs


def test_signatures_name_tensors():
    file = read("two")
    assert set(file.signature.inputs) == {"z_first", "a_second"}
    assert set(file.signature.outputs) == {"p", "q"}
    assert {*file.signature.inputs.values()} == {*file.inputs}
    assert file.signature.key == "serving_default"


def test_without_a_signature_tensors_are_named_by_themselves():
    file = TfliteFile.read(FER)
    assert file.signature is None
    assert list(file.input_names) == ["x"]
    assert list(file.output_names) == ["Identity"]


def test_custom_and_flex_operators_are_named():
    assert read("cnn_float32").custom_ops == ()
    assert read("custom").custom_ops == ("Erfinv",)
    assert read("custom").flex_ops == ()
    assert read("flex").flex_ops == ("FlexCholesky",)


def test_state_is_seen():
    assert read("lstm_float32").stateful
    assert not read("cnn_float32").stateful


# Arithmetic


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnn_float32", {"float": 7}),
        ("cnn_dynamic", {"float": 5, "hybrid": 2}),
        ("cnn_int8", {"integer": 9}),
        ("cnn_int8_io", {"integer": 7}),
        ("lstm_dynamic", {"hybrid": 1, "float": 3}),
        ("lstm_int8", {"integer": 6}),
        ("sine_int8", {"float": 1, "integer": 3}),
        ("matmul_right_dynamic", {"hybrid": 1}),
        ("matmul_left_dynamic", {"float": 1}),
        ("text_dynamic", {"integer": 2, "float": 3}),
    ],
)
def test_operators_are_integer_hybrid_or_float(name, expected):
    assert Counter(operator.arithmetic for operator in read(name).operators) == expected


def test_weights_that_are_densified_at_load_still_make_an_operator_hybrid():
    operators = {operator.arithmetic for operator in read("sparse_dynamic").operators if "CON" in operator.name}
    assert "hybrid" in operators


def test_the_step_of_an_output_is_the_scale_it_was_last_quantized_with():
    assert read("cnn_float32").output_step(read("cnn_float32").outputs[0]) == 0
    for name in ("cnn_int8", "cnn_int8_io"):
        file = read(name)
        assert file.output_step(file.outputs[0]) == pytest.approx(1 / 256)


def test_the_operator_that_computes_an_output_is_found_behind_its_border():
    for name in ("cnn_float32", "cnn_int8", "cnn_int8_io"):
        file = read(name)
        assert file.computing_operator(file.outputs[0]) == "SOFTMAX"


# Values and statistics


def kernels() -> dict[str, np.ndarray]:
    with np.load(layer_models() / "kernels.npz") as arrays:
        return dict(arrays)


def weight(file: TfliteFile, operator: str, size: int):
    return next(w for w in file.weights if w.operator == operator and w.tensor.size == size)


@pytest.mark.parametrize("mode", ["float32", "float16"])
def test_constants_are_the_weights_that_were_converted(mode):
    file, hidden, second = read(f"pruned_{mode}"), kernels()["hidden"], kernels()["second"]
    tolerance = 0 if mode == "float32" else 1e-3
    np.testing.assert_allclose(weight(file, "FULLY_CONNECTED", hidden.size).values, hidden.T, atol=tolerance)
    moved = np.moveaxis(second, -1, 0)
    np.testing.assert_allclose(weight(file, "CONV_2D", second.size).values, moved, atol=tolerance)


def test_int8_constants_are_the_weights_after_their_scales():
    file, hidden = read("pruned_int8"), kernels()["hidden"]
    found = weight(file, "FULLY_CONNECTED", hidden.size)
    scales = np.asarray(found.tensor.scales)
    assert found.values.dtype == np.int8
    assert found.tensor.quantized_dimension == 0
    np.testing.assert_allclose(found.values * scales[:, None], hidden.T, atol=scales.max())


def test_descriptions_hold_bytes_sparsity_and_distinct_values():
    file, hidden = read("pruned_float32"), kernels()["hidden"]
    tensor = weight(file, "FULLY_CONNECTED", hidden.size).tensor
    description = file.tensors[tensor.index]
    data = np.ascontiguousarray(hidden.T).tobytes()
    assert description.constant
    assert (description.dtype, list(description.shape)) == ("float32", list(hidden.T.shape))
    assert description.raw_bytes == len(data)
    # Signed zeros: what was pruned may be −0.0.
    assert description.deflated_bytes == pytest.approx(len(zlib.compress(data, 9)), rel=0.01)
    assert description.sparsity == pytest.approx((hidden == 0).mean())
    assert description.unique_values == np.unique(hidden).size
    assert description.unique_values_per_channel == max(np.unique(column).size for column in hidden.T)
    assert description.quantized_dimension == -1


def test_descriptions_of_computed_tensors_hold_no_statistics():
    file = read("cnn_int8")
    description = file.tensors[file.inputs[0]]
    assert (description.constant, description.raw_bytes, description.unique_values) == (False, 0, 0)
    assert list(description.shape) == [-1, 12, 12, 3]


def test_descriptions_hold_scales_and_zero_points():
    file = read("cnn_int8_io")
    entry, first = file.tensors[file.inputs[0]], weight(file, "CONV_2D", 432).tensor
    assert (entry.dtype, len(entry.scales), entry.quantized_dimension) == ("int8", 1, -1)
    description = file.tensors[first.index]
    assert (len(description.scales), description.quantized_dimension) == (16, 0)
    assert set(description.zero_points) == {0}


@pytest.mark.parametrize(("operator", "axis"), [("CONV_2D", 0), ("DEPTHWISE_CONV_2D", 3), ("FULLY_CONNECTED", 0)])
@pytest.mark.parametrize("mode", ["float32", "float16", "int8"])
def test_output_channels_run_along_the_axis_of_each_operator(operator, axis, mode):
    found = [w for w in read(f"cnn_{mode}").weights if w.operator == operator]
    assert found
    assert {w.channel_axis for w in found} == {axis}


def test_a_constant_on_the_left_of_a_product_has_its_channels_in_rows():
    tensor = next(w.tensor for w in read("matmul_left_dynamic").weights)
    right, left = (Operator(0, "BATCH_MATMUL", inputs, (9,)) for inputs in ((5, tensor.index), (tensor.index, 5)))
    transposed = Operator(0, "BATCH_MATMUL", (5, tensor.index), (9,), transposed_weights=True)
    assert [channel_axis(operator, tensor) for operator in (right, left, transposed)] == [2, 1, 1]


def test_weights_of_loop_bodies_are_found():
    file = read("gru_dynamic")
    assert {w.subgraph for w in file.weights if w.tensor.dtype == "int8"} == {2}


def test_sparse_tensors_are_flagged_and_their_zeros_counted():
    file, hidden = read("sparse_float32"), kernels()["hidden"]
    found = weight(file, "FULLY_CONNECTED", hidden.size)
    assert found.tensor.sparse
    assert file.data(found.tensor.index) is None
    assert found.zeros == (hidden == 0).sum()
    description = file.tensors[found.tensor.index]
    assert description.sparsity == pytest.approx((hidden == 0).mean())
    assert description.unique_values == np.unique(hidden).size
    assert description.raw_bytes < hidden.nbytes / 2


def test_the_flatbuffer_reader_agrees_with_the_file_that_was_shipped():
    file = TfliteFile.read(FER)
    assert Counter(operator.name for operator in file.operators) == {
        "CONV_2D": 15,
        "DEPTHWISE_CONV_2D": 8,
        "MAX_POOL_2D": 4,
        "ADD": 4,
        "MEAN": 1,
        "SOFTMAX": 1,
    }
    assert sum(operator.arithmetic == "hybrid" for operator in file.operators) == 9


# Files that no converter here writes


class Built:
    """A small file from the schema's own objects."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.model = schema.ModelT()
        self.model.version, self.model.operatorCodes, self.model.buffers = 3, [], [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []
        self.model.subgraphs = [self.graph]

    def buffer(self, data: bytes) -> int:
        self.model.buffers.append(self.schema.BufferT())
        self.model.buffers[-1].data = np.frombuffer(data, np.uint8)
        return len(self.model.buffers) - 1

    def tensor(self, name: str, dtype: str, shape: list[int], *, buffer: int = 0, scale: list[float] | None = None):
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, shape, buffer
        tensor.type = getattr(self.schema.TensorType, dtype)
        if scale:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = scale, [0] * len(scale)
        self.graph.tensors.append(tensor)
        return tensor

    def write(self, path: Path) -> Path:
        import flatbuffers

        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path


@pytest.mark.parametrize(
    ("dtype", "data", "shape", "values"),
    [
        ("INT4", bytes([0x21, 0x8F, 0x07]), [5], [1, 2, -1, -8, 7]),
        ("UINT4", bytes([0x21, 0x8F]), [2, 2], [[1, 2], [15, 8]]),
        ("INT2", bytes([0b10_01_11_00]), [4], [0, -1, 1, -2]),
        ("BFLOAT16", bytes([0x80, 0x3F, 0x00, 0xC0]), [2], [1.0, -2.0]),
        ("FLOAT16", np.array([1.5, -2], "<f2").tobytes(), [2], [1.5, -2.0]),
        ("BOOL", bytes([0, 1]), [2], [False, True]),
        ("INT64", np.array([2**40], "<i8").tobytes(), [1], [2**40]),
        ("INT32", b"\x07\x00\x00\x00", [], 7),
    ],
)
def test_packed_and_short_types_are_read(tmp_path, dtype, data, shape, values):
    built = Built()
    built.tensor("weights", dtype, shape, buffer=built.buffer(data))
    file = TfliteFile.read(built.write(tmp_path / "model.tflite"))
    np.testing.assert_array_equal(file.data(0), np.asarray(values))
    assert file.tensors[0].dtype == dtype.lower()
    assert file.tensors[0].raw_bytes == len(data)


def test_int4_values_in_blocks_have_the_scale_of_their_block(tmp_path):
    built = Built()
    in_blocks(built)
    file = TfliteFile.read(built.write(tmp_path / "model.tflite"))
    tensor = file.main.tensors[0]
    assert (tensor.size, tensor.block_size, tensor.quantized_dimension) == (8, 2, -1)
    assert tensor.scales == (0.5, 2, 4, 8)
    np.testing.assert_array_equal(file.data(0), [[1, 2, -1, -8], [0, 7, 0, 0]])
    np.testing.assert_array_equal(real_values(tensor), [[0.5, 1, -2, -16], [0, 28, 0, 0]])
    description = file.tensors[0]
    assert (description.dtype, description.raw_bytes) == ("int4", 4)
    assert (description.sparsity, description.unique_values) == (3 / 8, 6)


def test_values_of_channels_have_the_scale_of_their_channel(tmp_path):
    built = Built()
    data = np.array([[1, -2, 3], [4, 5, -6]], np.int8)
    tensor = built.tensor("w", "INT8", [2, 3], buffer=built.buffer(data.tobytes()), scale=[1.0, 2.0, 4.0])
    tensor.quantization.quantizedDimension, tensor.quantization.zeroPoint = 1, [0, 1, 0]
    read_back = TfliteFile.read(built.write(tmp_path / "model.tflite")).main.tensors[0]
    np.testing.assert_array_equal(real_values(read_back), [[1, -6, 12], [4, 8, -24]])


def test_zeros_are_counted_at_the_zero_point(tmp_path):
    built = Built()
    tensor = built.tensor("w", "UINT8", [2, 2], buffer=built.buffer(bytes([128, 0, 7, 128])), scale=[0.5])
    tensor.quantization.zeroPoint = [128]
    assert TfliteFile.read(built.write(tmp_path / "model.tflite")).tensors[0].sparsity == 0.5


def test_string_constants_are_described_without_values(tmp_path):
    built = Built()
    built.tensor("words", "STRING", [3], buffer=built.buffer(b"\x01\x00\x00\x00abc"))
    file = TfliteFile.read(built.write(tmp_path / "model.tflite"))
    assert file.data(0) is None
    assert (file.tensors[0].dtype, file.tensors[0].raw_bytes) == ("string", 7)


def test_tensors_of_one_name_are_still_told_apart(tmp_path):
    built = Built()
    built.tensor("x", "FLOAT32", [1])
    built.tensor("x", "FLOAT32", [1])
    built.graph.inputs = [0, 1]
    file = TfliteFile.read(built.write(tmp_path / "model.tflite"))
    assert sorted(file.input_names.values()) == [0, 1]


def scale_along(built: Built, dimension: int) -> None:
    built.tensor(
        "w", "INT8", [2, 3], buffer=built.buffer(bytes(6)), scale=[1.0, 2.0]
    ).quantization.quantizedDimension = dimension


def in_blocks(
    built: Built, *, size: int = 2, scales: list[float] | None = None, holder: int | None = None, zero_points: int = -1
):
    """Adds int4 weights [[1, 2, −1, −8], [0, 7, 0, 0]] with a scale for every `size` of a row, in another tensor."""
    weights = built.tensor("w", "INT4", [2, 4], buffer=built.buffer(bytes([0x21, 0x8F, 0x70, 0x00])))
    values = np.array([0.5, 2, 4, 8] if scales is None else scales, "<f2")
    built.tensor("w_scales", "FLOAT16", [values.size], buffer=built.buffer(values.tobytes()))
    details = built.schema.BlockwiseQuantizationT()
    details.scales, details.zeroPoints, details.blockSize = 1 if holder is None else holder, zero_points, size
    weights.quantization = built.schema.QuantizationParametersT()
    weights.quantization.details = details
    weights.quantization.detailsType = built.schema.QuantizationDetails.BlockwiseQuantization


BREAKS = {
    "blocks that do not divide their axis": lambda b: in_blocks(b, size=3, scales=[1.0] * 2),
    "blocks of no size": lambda b: in_blocks(b, size=0),
    "too few scales for the blocks": lambda b: in_blocks(b, scales=[1.0] * 3),
    "block scales that are not there": lambda b: in_blocks(b, holder=9),
    "block scales that are integers": lambda b: in_blocks(b, holder=0),
    "a block scale that is not finite": lambda b: in_blocks(b, scales=[1.0, 1.0, 1.0, float("inf")]),
    "zero points by block": lambda b: in_blocks(b, zero_points=1),
    "values that do not fill the shape": lambda b: b.tensor("w", "FLOAT32", [3], buffer=b.buffer(b"1234")),
    "a negative size": lambda b: b.tensor("w", "FLOAT32", [-7]),
    "a huge shape": lambda b: b.tensor("w", "FLOAT32", [2**31 - 1] * 4, buffer=b.buffer(b"1234")),
    "too many axes": lambda b: b.tensor("w", "FLOAT32", [1] * 17),
    "a buffer that is not there": lambda b: b.tensor("w", "FLOAT32", [1], buffer=99),
    "an input that is not there": lambda b: b.graph.inputs.append(99),
    "a negative output": lambda b: b.graph.outputs.append(-1),
    "a scale that is not finite": lambda b: b.tensor("w", "INT8", [1], scale=[float("nan")]),
    "scales along another axis": lambda b: scale_along(b, 1),
    "scales along no axis": lambda b: scale_along(b, 9),
    "an unknown type": lambda b: setattr(b.tensor("w", "FLOAT32", [1]), "type", 77),
    "no graph": lambda b: setattr(b.model, "subgraphs", []),
    "a signature of no graph": lambda b: setattr(b.model, "signatureDefs", [signature(b, 5, 0)]),
    "a signature of no tensor": lambda b: setattr(b.model, "signatureDefs", [signature(b, 0, 5)]),
    "an operator without a code": lambda b: b.graph.operators.append(b.schema.OperatorT()),
}


def signature(built: Built, graph: int, tensor: int):
    definition, entry = built.schema.SignatureDefT(), built.schema.TensorMapT()
    entry.name, entry.tensorIndex = "x", tensor
    definition.signatureKey, definition.subgraphIndex, definition.inputs = "s", graph, [entry]
    return definition


@pytest.mark.parametrize("kind", BREAKS)
def test_valid_flatbuffers_that_make_no_sense_are_malformed(tmp_path, kind):
    built = Built()
    BREAKS[kind](built)
    malformed(built.write(tmp_path / "model.tflite"))


def test_many_tensors_that_share_large_values_are_refused_before_they_are_counted(tmp_path):
    built = Built()
    buffer = built.buffer(bytes(1 << 16))
    for index in range(400):
        built.tensor(f"w{index}", "INT8", [1 << 16], buffer=buffer)
    assert "share" in malformed(built.write(tmp_path / "model.tflite"))


# Damage


@pytest.mark.parametrize("content", [b"", b"TFL3", bytes(1000), b"\x1c\x00\x00\x00TFL3" + b"\xff" * 500, b"PK" * 100])
def test_files_that_are_something_else_are_malformed(tmp_path, content):
    (tmp_path / "model.tflite").write_bytes(content)
    malformed(tmp_path / "model.tflite")


@pytest.mark.parametrize("name", ["cnn_int8", "gru_dynamic", "sparse_dynamic"])
def test_truncated_files_are_malformed(tmp_path, name):
    whole = (layer_models() / f"{name}.tflite").read_bytes()
    for length in np.random.default_rng(0).integers(0, len(whole), 60):
        (tmp_path / "model.tflite").write_bytes(whole[:length])
        malformed(tmp_path / "model.tflite")


@pytest.mark.parametrize("name", ["cnn_float32", "cnn_int8", "gru_dynamic", "lstm_int8", "sparse_dynamic", "two"])
def test_damaged_files_are_malformed_or_another_valid_file_and_never_take_long(tmp_path, name):
    whole = (layer_models() / f"{name}.tflite").read_bytes()
    rng = np.random.default_rng(1)
    refused, began = 0, time.monotonic()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 4, 16, 64])):
            # Most of the structure stands at the end of the file, some at its beginning.
            place = rng.integers(600) if rng.random() < 0.3 else len(data) - 1 - rng.integers(min(6000, len(data)))
            data[place] = rng.choice([0, 127, 128, 255, rng.integers(256)])
        (tmp_path / "model.tflite").write_bytes(data)
        try:
            file = TfliteFile.read(tmp_path / "model.tflite")
        except SqueezeflowError as error:
            assert error.reason == "MALFORMED_MODEL"  # noqa: PT017
            refused += 1
        else:
            # Nothing that is asked of a file that was read may fail.
            assert len(list(file.tensors)) == len(file.main.tensors)
            assert len(file.operators) == len(file.main.operators)
            contracts.contract_of(file)
            [(w.zeros, w.zero_channels) for w in file.weights]
    assert refused > 30
    assert time.monotonic() - began < 60


# Contracts of foreign files


def test_a_foreign_contract_has_the_names_of_the_signature():
    contract = contracts.foreign(layer_models() / "cnn_int8_io.tflite")
    assert contract.foreign
    assert contract.signature == "serving_default"
    entry, result = contract.inputs[0], contract.outputs[0]
    assert (entry.name, entry.signature_name, entry.dtype) == ("image", "image", "int8")
    assert list(entry.shape) == [-1, 12, 12, 3]
    assert entry.quantization.scale > 0
    assert (result.name, result.meaning, result.quantization.zero_point) == ("scores", "probabilities", -128)
    assert contracts.decode(contracts.encode(contract)) == contract


def test_a_foreign_contract_without_a_signature_has_the_names_of_the_tensors():
    contract = contracts.foreign(FER)
    assert [tensor.name for tensor in contract.inputs] == ["x"]
    assert contract.signature == ""
    assert not contract.inputs[0].HasField("quantization")


def test_a_foreign_contract_of_several_outputs_keeps_them_apart():
    contract = contracts.foreign(PITCH)
    assert {tensor.name: list(tensor.shape) for tensor in contract.outputs} == {
        "contour": [-1, 172, 264],
        "note": [-1, 172, 88],
        "onset": [-1, 172, 88],
    }


def test_string_tensors_can_be_described():
    assert contracts.foreign(layer_models() / "string.tflite").inputs[0].dtype == "string"
