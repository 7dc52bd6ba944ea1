"""What a file costs and why its operators are what they are: counted by hand, and seen in LiteRT."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from tests.layer_models import FER, layer_models

from squeezeflow.core.tflite import Operator, Subgraph, Tensor, TfliteFile
from squeezeflow.core.tflite.arena import ALIGNMENT, arena_peak_bytes
from squeezeflow.core.tflite.explain import NO_INT8_KERNEL, UNKNOWN, Explainer
from squeezeflow.core.tflite.macs import macs


def read(name: str) -> TfliteFile:
    return TfliteFile.read(layer_models() / f"{name}.tflite")


def tensor(index: int, *shape: int, dtype: str = "float32", constant: bool = False, **fields: object) -> Tensor:
    names = fields.pop("name", f"tensor_{index}")
    buffer = memoryview(bytes(int(np.prod(shape)) * 4)) if constant else None
    return Tensor(index, names, dtype, shape, shape, buffer=buffer, **fields)  # type: ignore[arg-type]


def graph(
    tensors: Sequence[Tensor],
    steps: Iterable[tuple[str, Sequence[int], Sequence[int]]],
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> Subgraph:
    operators = [Operator(index, name, tuple(ins), tuple(outs)) for index, (name, ins, outs) in enumerate(steps)]
    return Subgraph(tuple(tensors), tuple(operators), tuple(inputs), tuple(outputs))


# Multiply-accumulates


@pytest.mark.parametrize(
    ("name", "inputs", "output", "expected"),
    [
        ("CONV_2D", [(1, 12, 12, 3), (16, 3, 3, 3)], (1, 10, 10, 16), 10 * 10 * 16 * 3 * 3 * 3),
        # Two groups: half of the input channels meet each filter.
        ("CONV_2D", [(1, 6, 6, 8), (16, 3, 3, 4)], (1, 4, 4, 16), 4 * 4 * 16 * 3 * 3 * 4),
        ("DEPTHWISE_CONV_2D", [(1, 8, 8, 5), (1, 3, 3, 10)], (1, 6, 6, 10), 6 * 6 * 10 * 3 * 3),
        ("TRANSPOSE_CONV", [(4,), (8, 3, 3, 16), (1, 5, 5, 16)], (1, 10, 10, 8), 5 * 5 * 16 * 3 * 3 * 8),
        ("CONV_3D", [(1, 6, 6, 6, 8), (3, 3, 3, 8, 16)], (1, 4, 4, 4, 16), 4**3 * 16 * 27 * 8),
        ("CONV_3D_TRANSPOSE", [(5,), (2, 2, 2, 4, 8), (1, 3, 3, 3, 8)], (1, 6, 6, 6, 4), 27 * 8 * 8 * 4),
        ("FULLY_CONNECTED", [(1, 64), (10, 64)], (1, 10), 640),
        ("FULLY_CONNECTED", [(1, 7, 64), (10, 64)], (1, 7, 10), 7 * 640),
        ("BATCH_MATMUL", [(4, 8, 64), (4, 64, 32)], (4, 8, 32), 4 * 8 * 64 * 32),
        # Stored the other way round, to be transposed.
        ("BATCH_MATMUL", [(4, 64, 8), (4, 32, 64)], (4, 8, 32), 4 * 8 * 64 * 32),
        ("LSTM", [(1, 20), (1, 8), (32, 28), (32,), (1, 8)], (1, 8), 32 * 28),
        ("SVDF", [(1, 20), (16, 20), (16, 9)], (1, 16), 16 * 20 + 16 * 9),
        ("ADD", [(1, 64), (1, 64)], (1, 64), 0),
        ("MAX_POOL_2D", [(1, 8, 8, 4)], (1, 4, 4, 4), 0),
        # A free axis is 1.
        ("FULLY_CONNECTED", [(-1, 64), (10, 64)], (-1, 10), 640),
        # Too few inputs: no file that runs.
        ("CONV_2D", [(1, 12, 12, 3)], (1, 10, 10, 16), 0),
    ],
)
def test_multiply_accumulates_are_those_counted_by_hand(name, inputs, output, expected):
    tensors = [tensor(index, *shape) for index, shape in enumerate([*inputs, output])]
    made = graph(tensors, [(name, range(len(inputs)), [len(inputs)])], [0], [len(inputs)])
    assert macs(made.operators[0], made) == expected


def test_an_lstm_multiplies_its_matrices_at_every_step():
    # Six steps of 20 values, 64 units, four gates; then a dense layer of 64 × 3.
    assert read("lstm_float32").macs == 6 * 4 * 64 * (20 + 64) + 64 * 3


def test_quantization_and_pruning_change_no_multiply_accumulates():
    assert {read(f"cnn_{mode}").macs for mode in ("float32", "float16", "dynamic", "int8", "int8_io")} == {418208}
    assert read("pruned_int8").macs == 418208


def test_a_network_that_others_made_has_the_sum_of_its_operators():
    file = TfliteFile.read(FER)
    assert file.macs == sum(operator.macs for operator in file.operators) == 10_163_392


def test_what_is_left_out_is_said():
    assert read("cnn_float32").accounting_notes == []
    assert read("free").accounting_notes == ["macs and arena_peak_bytes count the free axes of image as 1"]
    assert read("gru_dynamic").accounting_notes == ["macs count the bodies of loops once"]


def test_parameters_are_weights_and_biases_whatever_they_are_stored_as():
    # first: no bias of its own, but BatchNormalization's; scores has none.
    layers = 3 * 3 * 3 * 16 + 16, 3 * 3 * 16 + 16, 3 * 3 * 16 * 32 + 32, 2048 * 32 + 32, 32 * 5 + 5
    for mode in ("float32", "float16", "dynamic", "int8"):
        # Biases that are zero are left out, or shared.
        assert sum(layers) - 16 - 32 - 32 - 5 <= read(f"cnn_{mode}").parameters <= sum(layers)
    assert read("sparse_float32").parameters == read("pruned_float32").parameters


# Arena


def test_two_tensors_in_a_row_lie_side_by_side_and_the_third_takes_the_first_ones_place():
    tensors = [tensor(0, 1, 16), tensor(1, 1, 100), tensor(2, 1, 50), tensor(3, 1, 100), tensor(4, 1, 4)]
    steps = [("MUL", [0], [1]), ("MUL", [1], [2]), ("MUL", [2], [3]), ("MUL", [3], [4])]
    made = graph(tensors, steps, [0], [4])
    # Input 0…64 for good; 400 bytes at 64 twice, one after the other; 200 at 512 (464 aligned); the output at 512 too.
    assert arena_peak_bytes(made) == 512 + 200


def test_inputs_and_outputs_are_never_given_up():
    tensors = [tensor(0, 1, 1000), tensor(1, 1, 10), tensor(2, 1, 1000)]
    made = graph(tensors, [("SUM", [0], [1]), ("TILE", [1], [2])], [0], [2])
    # 4,000 aligned to 4,032; the output there; the small one behind it, at 8,032 aligned.
    assert arena_peak_bytes(made) == 8064 + 40


def test_a_result_that_is_read_again_later_keeps_its_place():
    wide, narrow = 256, 16
    tensors = [tensor(0, narrow), tensor(1, wide), tensor(2, wide), tensor(3, wide), tensor(4, narrow)]
    chain = [("MUL", [0], [1]), ("MUL", [1], [2]), ("MUL", [2], [3]), ("SUM", [3], [4])]
    skip = [*chain[:3], ("SUM", [3, 1], [4])]
    assert arena_peak_bytes(graph(tensors, chain, [0], [4])) == 64 + 2 * 1024
    assert arena_peak_bytes(graph(tensors, skip, [0], [4])) == 64 + 3 * 1024


def test_a_reshape_takes_no_memory_unless_it_is_an_output():
    tensors = [tensor(0, 16), tensor(1, 256), tensor(2, 16, 16), tensor(3, 16)]
    steps = [("MUL", [0], [1]), ("RESHAPE", [1], [2]), ("SUM", [2], [3])]
    assert arena_peak_bytes(graph(tensors, steps, [0], [3])) == 64 + 1024 + 64
    assert arena_peak_bytes(graph(tensors[:3], steps[:2], [0], [2])) == 64 + 2 * 1024


def test_constants_lie_in_the_file_and_variables_beside_the_arena():
    tensors = [tensor(0, 16), tensor(1, 1000, constant=True), tensor(2, 100, variable=True), tensor(3, 16)]
    made = graph(tensors, [("FULLY_CONNECTED", [0, 1, 2], [3])], [0], [3])
    assert arena_peak_bytes(made) == 2 * 64 + 400


@pytest.mark.parametrize(
    "name", ["fer", "conv3d_dynamic", "matmul_int8", "matmul_left_dynamic", "sine_int8", "text_dynamic", "two"]
)
def test_the_plan_is_the_one_that_litert_makes(name):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    path = FER if name == "fer" else layer_models() / f"{name}.tflite"
    file = TfliteFile.read(path)
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_op_resolver_type=resolver, num_threads=1)
    interpreter.allocate_tensors()
    views = [interpreter.tensor(t.index)() for t in file.main.tensors if not t.constant]
    start = min(view.ctypes.data for view in views)
    inside = [view for view in views if view.ctypes.data - start < file.arena_peak_bytes]
    end = max(view.ctypes.data + view.nbytes for view in inside)
    del views, inside
    # The last kernels of a plan may use scratch memory at its end; none of these does, to the byte.
    assert abs((end - start) - file.arena_peak_bytes) < ALIGNMENT


def test_float16_weights_are_unpacked_without_a_delegate_and_counted():
    extra = read("cnn_float16").arena_peak_bytes - read("cnn_float32").arena_peak_bytes
    assert 4 * 70_000 < extra < 4 * 72_000


def test_integers_take_a_quarter_of_the_memory_of_floats():
    assert read("cnn_int8_io").arena_peak_bytes * 4 == pytest.approx(read("cnn_float32").arena_peak_bytes, rel=0.02)


# Reasons


def reasons(name: str) -> list[tuple[str, str]]:
    return [(operator.name, operator.reason) for operator in read(name).operators]


def test_an_integer_operator_needs_no_reason():
    assert {reason for _, reason in reasons("cnn_int8")} == {""}


def test_the_operators_of_a_dynamic_range_file_say_what_keeps_them_float():
    none, small = "no weights, and activations are float in this file", "weights under 1,024 elements"
    hybrid = "weights are int8, activations are float"
    assert [reason for _, reason in reasons("cnn_dynamic")] == [small, small, hybrid, none, hybrid, small, none]


def test_an_operator_without_an_int8_kernel_says_so():
    assert ("SIN", "no int8 kernel") in reasons("sine_int8")


def test_float_and_float16_files_say_that_nothing_is_quantized():
    assert {reason for _, reason in reasons("cnn_float32")} == {"nothing in the file is quantized"}
    assert ("CONV_2D", "weights are float16, unpacked to float32") in reasons("cnn_float16")
    assert ("DEQUANTIZE", "unpacks float16 weights") in reasons("cnn_float16")


def test_integer_inputs_loops_and_operators_of_others_say_what_they_are():
    scaled = {"dtype": "int8", "scales": (0.1,), "zero_points": (0,)}
    tensors = [tensor(0, 4, dtype="int32"), tensor(1, 4), tensor(2, 4, **scaled), tensor(3, 4), tensor(4, 4)]
    steps = [
        ("CAST", [0], [1]),
        ("QUANTIZE", [1], [2]),
        ("TANH", [2], [2]),
        ("DEQUANTIZE", [2], [3]),
        ("ADD", [3], [4]),
    ]
    explainer = Explainer(graph(tensors, steps, [0], [4]))
    found = [explainer.reason(operator) for operator in graph(tensors, steps, [0], [4]).operators]
    assert found == ["input is int32", "", "", "", UNKNOWN]
    assert ("WHILE", "runs other graphs of the file") in reasons("gru_dynamic")
    assert [reason for _, reason in reasons("custom")] == ["custom operator: no int8 kernel is known"]


@pytest.mark.parametrize("name", sorted(NO_INT8_KERNEL & {"SIN", "COS", "SQUARE", "SIGN", "FLOOR", "POW"}))
def test_litert_refuses_int8_where_we_say_that_there_is_no_kernel(name):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=single(name))

    def run() -> None:
        interpreter.allocate_tensors()
        interpreter.invoke()

    with pytest.raises(RuntimeError, match=r"INT8|failed to prepare"):
        run()


def test_litert_takes_int8_where_we_do_not_say_so():
    from ai_edge_litert.interpreter import Interpreter

    for name in ("ABS", "TANH", "EXP", "LOG"):
        assert name not in NO_INT8_KERNEL
        Interpreter(model_content=single(name)).allocate_tensors()


def single(name: str) -> bytes:
    """Gives a file of one operator on int8 tensors."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    count = 2 if name == "POW" else 1
    made, operator, code, model = schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT(), schema.ModelT()
    made.tensors = []
    for index in range(count + 1):
        item = schema.TensorT()
        item.name, item.shape, item.buffer, item.type = f"t{index}", [1, 8], 0, schema.TensorType.INT8
        item.quantization = schema.QuantizationParametersT()
        item.quantization.scale, item.quantization.zeroPoint = [0.05], [0]
        made.tensors.append(item)
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, list(range(count)), [count]
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    made.inputs, made.outputs, made.operators = list(range(count)), [count], [operator]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [made], [schema.BufferT()]
    builder = flatbuffers.Builder(512)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


# Layers


@pytest.mark.parametrize("mode", ["float32", "float16", "dynamic", "int8"])
def test_operators_are_mapped_back_to_keras_layers(mode):
    layers = [operator.layer for operator in read(f"cnn_{mode}").operators if operator.macs]
    # BatchNormalization is folded away, its ReLU is fused and has a name of its own.
    assert layers[0].split(", ")[0] == "first"
    assert layers[1:] == ["depthwise", "second", "hidden", "scores"]


def test_constants_belong_to_the_layer_of_their_operator():
    file = read("cnn_int8")
    kernel = next(weight.tensor for weight in file.weights if weight.tensor.size == 2048 * 32)
    assert file.layer_of(kernel) == file.tensors[kernel.index].layer == "hidden"
    bias = file.main.tensors[file.operators[1].inputs[2]]
    # Its own name, `arith.constant…`, tells nothing.
    assert file.layer_of(bias).startswith("first")


@pytest.mark.parametrize(
    ("names", "layer"),
    [
        (["cnn/conv/Conv2D", "cnn/relu/Relu;cnn/norm/FusedBatchNormV3;cnn/conv/Conv2D"], "conv, relu, norm"),
        (["top/backbone/conv/Conv2D", "top/backbone/conv/Relu"], "backbone/conv"),
        (["top/sep/separable_conv2d/depthwise", "top/sep/separable_conv2d/depthwise1"], "sep"),
        (["m/att/query/einsum/Einsum", "m/att/Mul;m/att/query/einsum/Einsum"], "att"),
        (["StatefulPartitionedCall/cnn/dense/MatMul", "StatefulPartitionedCall:0"], "dense"),
        (["m/conv3d/Conv3D/ReadVariableOp", "StatefulPartitionedCall:0"], "conv3d"),
        (["arith.constant", "tfl.fully_connected"], ""),
        (["dense/MatMul", "dense/BiasAdd"], "dense"),
        (["m/quant_conv/Conv2D", "m/quant_conv/LastValueQuant/FakeQuantWithMinMaxVars"], "conv"),
        # Nothing tells that these were wrapped.
        (["m/quant_conv/Conv2D", "m/quant_conv/Relu"], "quant_conv"),
    ],
)
def test_layers_are_read_off_tensor_names(names, layer):
    tensors = [tensor(0, 4, name="x"), tensor(1, 4, 4, name=names[0], constant=True), tensor(2, 4, name=names[1])]
    made = graph(tensors, [("FULLY_CONNECTED", [0, 1], [2])], [0], [2])
    assert Explainer(made).layer(made.operators[0]) == layer
