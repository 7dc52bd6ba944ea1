"""A compacted file is the same model: it computes the same bits, tells the same layers, and is smaller."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from tests.layer_models import FER, PITCH, layer_models

from squeezeflow.core.tflite import Operator, Signature, Subgraph, Tensor, TfliteFile, compaction
from squeezeflow.core.tflite.compaction import compact, same_model
from squeezeflow.core.tflite.explain import Explainer
from squeezeflow.core.tflite.naming import short_names

# No interpreter of the wheels has kernels for them.
NOT_RUN = {"flex", "custom"}


def files() -> dict[str, Path]:
    own = {path.stem: path for path in sorted(layer_models().glob("*.tflite"))}
    return {**own, "fer": FER, "pitch": PITCH, "int4": int4()}


@cache
def compacted(path: Path) -> bytes:
    return compact(path.read_bytes())


def int4() -> Path:
    """Writes a file with packed 4-bit weights, as ai-edge-quantizer does."""
    from ai_edge_quantizer import quantizer, recipe

    path = layer_models() / "int4" / "cnn.tflite"
    if not path.exists():
        path.parent.mkdir()
        made = quantizer.Quantizer(str(layer_models() / "cnn_float32.tflite"), recipe.dynamic_wi4_afp32())
        made.quantize().export_model(str(path))
    return path


def unpack(data: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def changed(data: bytes, change: Callable[[Any], None]) -> bytes:
    model = unpack(data)
    change(model)
    return packed(model)


def results(path: Path, *, delegate: bool) -> list[bytes]:
    """Gives the bits of all outputs for two random inputs, one after the other."""
    types = litert.OpResolverType
    resolver = types.BUILTIN if delegate else types.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = litert.Interpreter(str(path), num_threads=1, experimental_op_resolver_type=resolver)
    random = np.random.default_rng(0)
    shapes = [(detail, [abs(size) for size in detail["shape_signature"]]) for detail in interpreter.get_input_details()]
    for detail, shape in shapes:
        free = len(shape) == 4 and -1 in detail["shape_signature"][1:]
        shape[1:3] = [8, 8] if free else shape[1:3]
        interpreter.resize_tensor_input(detail["index"], shape)
    interpreter.allocate_tensors()
    found = []
    for _ in range(2):
        for detail, shape in shapes:
            interpreter.set_tensor(detail["index"], values_for(random, detail["dtype"], shape))
        interpreter.invoke()
        outputs = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
        found += [repr(output.tolist()).encode() if output.dtype == object else output.tobytes() for output in outputs]
    return found


def values_for(random: np.random.Generator, dtype: type, shape: Sequence[int]) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return random.normal(size=shape).astype(dtype)
    if np.dtype(dtype).kind in "SO":
        return np.array([b"word"] * int(np.prod(shape)), object).reshape(shape)
    return random.integers(0, 100, shape).astype(dtype)


def deflated(data: bytes) -> int:
    return len(zlib.compress(data, 9))


def test_every_kind_of_file_computes_the_same_bits(tmp_path: Path) -> None:
    compared = {}
    for name, path in files().items():
        data = path.read_bytes()
        made = tmp_path / f"{name}.tflite"
        made.write_bytes(compacted(path))
        assert same_model(data, made.read_bytes()), name
        for delegate in (True, False) if name not in NOT_RUN else ():
            if delegate and name == "sparse_dynamic":
                continue  # XNNPACK refuses it, compacted or not
            before, after = results(path, delegate=delegate), results(made, delegate=delegate)
            assert before == after, name
            compared[name] = before
    assert len(compared) == len(files()) - len(NOT_RUN)
    # State is kept, signatures share constants, conditions choose: the second call gives something else.
    assert all(
        compared[name][0] != compared[name][-1] for name in ("lstm_float32", "counting", "branch", "gru_dynamic")
    )


def test_every_tensor_and_operator_tells_the_same_layer_and_callers_find_what_they_name(tmp_path: Path) -> None:
    shorter = 0
    for name, path in files().items():
        made = tmp_path / f"{name}.tflite"
        made.write_bytes(compacted(path))
        before, after = TfliteFile.read(path), TfliteFile.read(made)
        assert before.signatures == after.signatures, name
        assert (before.input_names, before.output_names) == (after.input_names, after.output_names), name
        assert before.parameters == after.parameters, name
        for number, (graph, other) in enumerate(zip(before.subgraphs, after.subgraphs, strict=True)):
            layers = [
                [file.layer_of(tensor, number) for tensor in file.subgraphs[number].tensors] for file in (before, after)
            ]
            assert layers[0] == layers[1], name
            told = [[Explainer(g).layer(operator) for operator in g.operators] for g in (graph, other)]
            assert told[0] == told[1], name
            kept = [graph.tensors[index].name for index in (*graph.inputs, *graph.outputs)]
            assert kept == [other.tensors[index].name for index in (*graph.inputs, *graph.outputs)], name
        names = [tensor.name for graph in after.subgraphs for tensor in graph.tensors]
        assert len(set(names)) == len(names), name
        shorter += sum(map(len, names)) < sum(
            len(tensor.name) for graph in before.subgraphs for tensor in graph.tensors
        )
    assert shorter > len(files()) / 2


def test_files_become_smaller_and_stay_so(tmp_path: Path) -> None:
    for name, path in files().items():
        data = path.read_bytes()
        made = compacted(path)
        assert len(made) < len(data), name
        assert deflated(made) < deflated(data), name
        assert compact(made) == made, name
    for name in ("cnn_int8", "pruned_int8"):
        data = files()[name].read_bytes()
        assert deflated(compact(data)) < deflated(data) - 250, name
        assert b"CONVERSION_METADATA" in data
        assert b"CONVERSION_METADATA" not in compact(data)
        assert compact(bytes(bytearray(data))) == compact(data), "the same file gives the same bytes"


def test_constants_are_aligned_as_kernels_read_them() -> None:
    for path in files().values():
        data = compacted(path)
        model = schema.Model.GetRootAs(data, 0)
        arrays = [model.Buffers(index).DataAsNumpy() for index in range(model.BuffersLength())]
        start = np.frombuffer(data, np.uint8).ctypes.data
        places = [array.ctypes.data - start for array in arrays if isinstance(array, np.ndarray)]
        assert places
        assert all(place % 16 == 0 for place in places), path


def test_names_stay_where_that_is_asked() -> None:
    data = files()["cnn_int8"].read_bytes()
    made = compact(data, rename=False)
    assert len(made) < len(data)
    names = [[tensor.name for tensor in unpack(file).subgraphs[0].tensors] for file in (data, made)]
    assert names[0] == names[1]


def test_what_others_put_into_a_file_stays() -> None:
    def add(model: Any) -> None:
        entry, buffer = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer, buffer.data = "TFLITE_METADATA", len(model.buffers), np.arange(9, dtype=np.uint8)
        model.metadata.append(entry)
        model.buffers.append(buffer)
        model.description = "sorts shoes"

    made = unpack(compact(changed(files()["cnn_int8"].read_bytes(), add)))
    assert made.description == b"sorts shoes"
    kept = {entry.name: bytes(made.buffers[entry.buffer].data) for entry in made.metadata}
    assert kept.pop(b"min_runtime_version").rstrip(b"\0")
    assert kept == {b"TFLITE_METADATA": bytes(range(9))}


def behind(model: Any) -> None:
    model.buffers[-1].offset = 2000


def elsewhere(model: Any) -> None:
    model.subgraphs[0].tensors[0].externalBuffer = 1


def unknown(model: Any) -> None:
    model.subgraphs[0].operators[0].builtinOptionsType = 126
    model.subgraphs[0].operators[0].builtinOptions = None


@pytest.mark.parametrize("change", [behind, elsewhere, unknown])
def test_a_file_that_is_not_understood_whole_is_given_back(change: Callable[[Any], None]) -> None:
    data = changed(files()["cnn_float32"].read_bytes(), change)
    assert compact(data) == data


def test_damaged_and_large_files_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    data = files()["cnn_int8"].read_bytes()
    for damaged in (b"", data[:100], data[: len(data) // 2], b"PK" + data[2:]):
        assert compact(damaged) == damaged
    assert compact(data) != data
    monkeypatch.setattr(compaction, "LARGEST", len(data) - 1)
    assert compact(data) == data


def constant(model: Any) -> None:
    buffer = next(found for t in model.subgraphs[0].tensors if (found := model.buffers[t.buffer]).data is not None)
    buffer.data = buffer.data ^ 1


def option(model: Any) -> None:
    next(o for o in model.subgraphs[0].operators if hasattr(o.builtinOptions, "strideW")).builtinOptions.strideW += 1


def scale(model: Any) -> None:
    quantizations = [tensor.quantization for tensor in model.subgraphs[0].tensors]
    first = next(found for found in quantizations if found is not None and found.scale is not None)
    first.scale = first.scale * np.float32(1.0000002)


def free_axis(model: Any) -> None:
    model.subgraphs[0].tensors[0].shapeSignature = None


def version(model: Any) -> None:
    model.operatorCodes[0].version += 1


def input_name(model: Any) -> None:
    model.signatureDefs[0].inputs[0].name = b"other"


def order(model: Any) -> None:
    model.subgraphs[0].operators.reverse()


@pytest.mark.parametrize("change", [constant, option, scale, free_axis, version, input_name, order])
def test_another_model_is_told_from_the_same_one(change: Callable[[Any], None]) -> None:
    data = files()["cnn_int8"].read_bytes()
    assert same_model(data, changed(data, lambda model: None))
    assert not same_model(data, changed(data, change))


def graph(*names: str) -> Subgraph:
    ends = [Tensor(0, "x", "float32", (1,), (1,)), Tensor(1, "StatefulPartitionedCall:0", "float32", (1,), (1,))]
    inner = [Tensor(index, name, "float32", (1,), (1,)) for index, name in enumerate(names, 2)]
    operators = [Operator(place, "ADD", (0,), (tensor.index,)) for place, tensor in enumerate([*inner, ends[1]])]
    return Subgraph((*ends, *inner), tuple(operators), (0,), (1,))


@pytest.mark.parametrize(
    ("long", "short"),
    [
        (["cnn/conv/Conv2D", "cnn/relu/Relu;cnn/norm/FusedBatchNormV3;cnn/conv/Conv2D"], "conv/Conv2D"),
        (["cnn/dense/MatMul", "cnn/dense/Relu;cnn/dense/BiasAdd", "tfl.quantize"], "dense/MatMul"),
        (["m/quant_conv/Conv2D", "m/quant_conv/LastValueQuant/FakeQuantWithMinMaxVars"], "conv/Conv2D"),
        (["m/att/query/einsum/Einsum", "m/att/Mul;m/att/query/einsum/Einsum"], "att/Einsum"),
        # Both lie in `side`, which would be taken for the model's name if it came first.
        (["model/side/first/MatMul", "model/side/second/MatMul"], "m/side/first/MatMul"),
    ],
)
def test_short_names_tell_what_long_ones_do(long: list[str], short: str) -> None:
    before = graph(*long)
    ((*ends, first, _), *others) = [names[:4] for names in short_names([before], [])]
    (names,) = short_names([before], [])
    after = graph(*names[2:])
    assert not others
    assert ends == ["x", "StatefulPartitionedCall:0"]
    assert first == short
    assert len(set(names)) == len(names)
    told = [[Explainer(one).layer(operator) for operator in one.operators] for one in (before, after)]
    assert told[0] == told[1]
    assert any(told[0])


def test_names_in_a_signature_stay_and_no_name_is_given_twice() -> None:
    graphs = [graph("cnn/dense/MatMul"), graph("cnn/dense/MatMul", "cnn/dense/BiasAdd;cnn/dense/Relu")]
    ends = ["x", "StatefulPartitionedCall:0"]
    assert short_names(graphs, []) == [[*ends, "dense/MatMul"], [*ends, "dense/MatMul1", "dense/BiasAdd"]]
    # A name that stays begins with the model's: in that graph the others keep that too.
    named = Signature("second", 1, {}, {"y": 3})
    kept = [*ends, "cnn/dense/MatMul", "cnn/dense/BiasAdd;cnn/dense/Relu"]
    assert short_names(graphs, [named]) == [[*ends, "dense/MatMul"], kept]
