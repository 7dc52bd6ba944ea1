"""Samples through LiteRT: by contract names, in batches that agree with single samples; refusals name the operator."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from tests.layer_models import FER, PITCH, layer_models

from squeezeflow.core import contracts
from squeezeflow.core.datasets import synthetic_inputs
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.litert.quantization import dequantize, quantize
from squeezeflow.core.tflite import Tensor


def path_of(name: str):
    return {"fer": FER, "pitch": PITCH}.get(name) or layer_models() / f"{name}.tflite"


def runner(name: str, **more) -> Runner:
    return Runner(path_of(name), contracts.foreign(path_of(name)), **more)


def samples(name: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return synthetic_inputs(contracts.foreign(path_of(name)), count, seed)


def refusal(call, reason: str) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        call()
    assert caught.value.reason == reason, caught.value
    assert "\n" not in caught.value.message
    return caught.value


# Names


def test_names_bind_whatever_the_order_of_the_file():
    inputs = samples("two", 4)
    outputs = runner("two").invoke(inputs)
    changed = runner("two").invoke({**inputs, "a_second": inputs["a_second"] + 1})
    # p is a layer of z_first alone, q of the difference.
    np.testing.assert_array_equal(outputs["p"], changed["p"])
    assert np.abs(outputs["q"] - changed["q"]).max() > 0.01


def test_contract_names_stand_for_signature_names():
    contract = contracts.foreign(path_of("two"))
    renamed = {"z_first": "left", "a_second": "right", "p": "a", "q": "b"}
    for tensor in [*contract.inputs, *contract.outputs]:
        tensor.name = renamed[tensor.name]
    inputs = samples("two", 3)
    outputs = Runner(path_of("two"), contract).invoke({renamed[name]: value for name, value in inputs.items()})
    expected = runner("two").invoke(inputs)
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[renamed[name]], value)


def test_a_contract_of_another_file_is_refused():
    error = refusal(lambda: Runner(path_of("two"), contracts.foreign(path_of("cnn_float32"))), "MALFORMED_MODEL")
    assert "image" in error.message


def test_a_contract_that_leaves_out_an_input_is_refused():
    contract = contracts.foreign(path_of("two"))
    del contract.inputs[0]
    refusal(lambda: Runner(path_of("two"), contract), "MALFORMED_MODEL")


@pytest.mark.parametrize("names", [[], ["z_first"], ["z_first", "a_second", "third"]])
def test_inputs_that_are_missing_or_unknown_are_refused(names):
    error = refusal(
        lambda: runner("two").invoke({name: np.zeros((1, 4), np.float32) for name in names}), "DATA_MISMATCH"
    )
    assert "z_first" in error.message


# Real values


def test_integer_inputs_and_outputs_are_quantized_and_dequantized():
    inputs = samples("cnn_float32", 16)
    expected, found = runner("cnn_float32").invoke(inputs)["scores"], runner("cnn_int8_io").invoke(inputs)["scores"]
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.05


def test_integers_go_through_as_they_are_where_they_are_given():
    model = runner("cnn_int8_io")
    tensor = model.file.main.tensors[model.file.inputs[0]]
    real = samples("cnn_float32", 4)["image"]
    raw = quantize(real, tensor)
    np.testing.assert_array_equal(model.invoke({"image": raw})["scores"], model.invoke({"image": real})["scores"])


def test_raw_calls_take_and_give_the_types_of_the_file():
    model = runner("cnn_int8_io")
    assert model.invoke_raw({"image": np.zeros((2, 12, 12, 3), np.int8)})["scores"].dtype == np.int8
    refusal(lambda: model.invoke_raw({"image": np.zeros((2, 12, 12, 3), np.float32)}), "DATA_MISMATCH")


def test_quantizing_rounds_half_away_from_zero_and_saturates():
    tensor = Tensor(0, "x", "int8", (1,), (1,), scales=(0.5,), zero_points=(3,))
    real = np.array([0.25, -0.25, 0.2, 1000, -1000, 0])
    assert quantize(real, tensor).tolist() == [4, 2, 3, 127, -128, 3]
    np.testing.assert_allclose(dequantize(np.array([4, 2, 3], np.int8), tensor), [0.5, -0.5, 0])


def test_values_are_quantized_as_the_file_itself_does():
    # cnn_int8 begins with QUANTIZE, cnn_int8_io expects it done: the same kernels follow.
    inputs = samples("cnn_float32", 32, seed=5)
    inside, outside = runner("cnn_int8").invoke(inputs)["scores"], runner("cnn_int8_io").invoke(inputs)["scores"]
    np.testing.assert_allclose(inside, outside, atol=1e-7)


def test_the_step_of_every_output_is_told():
    assert runner("cnn_int8").output_steps == {"scores": pytest.approx(1 / 256)}
    assert runner("two").output_steps == {"p": 0, "q": 0}


def test_doubles_are_taken_for_floats_and_floats_not_for_integers():
    inputs = {"image": samples("cnn_float32", 2)["image"].astype(np.float64)}
    assert runner("cnn_float32").invoke(inputs)["scores"].dtype == np.float32
    refusal(lambda: runner("text_dynamic").invoke({"ids": np.zeros((1, 10), np.float32)}), "DATA_MISMATCH")


@pytest.mark.parametrize("shape", [(2, 12, 12), (2, 12, 11, 3), (2, 12, 12, 3, 1), (0, 12, 12, 3)])
def test_arrays_of_another_shape_are_refused_by_name(shape):
    error = refusal(lambda: runner("cnn_float32").invoke({"image": np.zeros(shape, np.float32)}), "DATA_MISMATCH")
    assert "image" in error.message
    assert str(list(shape)) in error.message


def test_inputs_with_different_numbers_of_samples_are_refused():
    inputs = {"z_first": np.zeros((2, 4), np.float32), "a_second": np.zeros((3, 4), np.float32)}
    refusal(lambda: runner("two").invoke(inputs), "DATA_MISMATCH")


# Batches and state


@pytest.mark.parametrize(
    "name",
    [
        *("cnn_float32", "cnn_float16", "cnn_dynamic", "cnn_int8", "cnn_int8_io", "sparse_float32", "sparse_dynamic"),
        *("two", "reshape", "mixes", "total", "lstm_float32", "lstm_dynamic", "lstm_int8", "gru_dynamic", "free"),
        *("text_dynamic", "fer"),
    ],
)
def test_a_batch_gives_what_its_samples_give_alone(name):
    inputs = samples(name, 7)
    model = runner(name)
    together = model.invoke(inputs)
    alone = [runner(name).invoke({key: value[row : row + 1] for key, value in inputs.items()}) for row in range(7)]
    for key, values in together.items():
        assert len(values) == 7
        np.testing.assert_allclose(values, np.concatenate([part[key] for part in alone]), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_file_with_a_hard_coded_batch_of_two_takes_any_number(count):
    inputs = samples("reshape_pairs", 6)
    model = runner("reshape_pairs")
    expected = model.invoke(inputs)["y"]
    found = model.invoke({name: value[:count] for name, value in inputs.items()})["y"]
    np.testing.assert_allclose(found, expected[:count], atol=1e-6)


def test_more_samples_than_a_batch_holds_are_split():
    inputs = samples("cnn_float32", 150)
    model = runner("cnn_float32")
    found = model.invoke(inputs)["scores"]
    assert found.shape == (150, 5)
    np.testing.assert_allclose(found[149:], model.invoke({"image": inputs["image"][149:]})["scores"], atol=1e-6)


def test_batches_of_changing_size_reuse_one_runner():
    inputs, model = samples("cnn_float32", 9)["image"], runner("cnn_float32")
    expected = model.invoke({"image": inputs})["scores"]
    for count in (1, 9, 4, 9, 2):
        np.testing.assert_allclose(model.invoke({"image": inputs[:count]})["scores"], expected[:count], atol=1e-6)


@pytest.mark.parametrize("name", ["lstm_float32", "lstm_dynamic", "lstm_int8"])
def test_state_does_not_leak_from_one_sample_to_the_next(name):
    one = samples(name, 1)
    repeated = {key: np.repeat(value, 5, axis=0) for key, value in one.items()}
    model = runner(name)
    for values in model.invoke(repeated).values():
        np.testing.assert_array_equal(values, np.repeat(values[:1], 5, axis=0))
    for _ in range(2):
        np.testing.assert_array_equal(model.invoke(one)["dense"], model.invoke(repeated)["dense"][:1])


def test_outputs_without_a_batch_axis_are_one_a_sample():
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(runner("total").invoke({"x": x})["y"], (x * x).sum(axis=1))


def test_free_axes_take_the_size_of_the_data():
    model = runner("free")
    for height, width in ((9, 7), (5, 5), (9, 7)):
        assert model.invoke({"image": np.ones((3, height, width, 1), np.float32)})[
            "global_average_pooling2d"
        ].shape == (3, 4)


def test_sizes_that_the_graph_cannot_take_are_the_datas_fault_and_leave_the_runner_whole():
    model = runner("free")
    error = refusal(lambda: model.invoke({"image": np.ones((3, 1, 1, 1), np.float32)}), "DATA_MISMATCH")
    assert "image [1, 1, 1, 1]" in error.message
    large = model.invoke({"image": np.ones((3, 9, 9, 1), np.float32)})
    assert np.isfinite(large["global_average_pooling2d"]).all()
    assert model.delegate == "xnnpack"


def test_ids_outside_a_table_are_the_datas_fault_and_leave_the_runner_whole():
    model = runner("text_dynamic")
    for bad in (200, -1):
        error = refusal(
            lambda bad=bad: model.invoke({"ids": np.array([[0] * 9 + [bad]] * 2, np.int32)}), "DATA_MISMATCH"
        )
        assert "GATHER" in error.message
        # LiteRT repeats old errors with every new one.
        assert error.message.count("GATHER") == 2
    assert model.invoke({"ids": np.zeros((2, 10), np.int32)})


def test_a_batch_of_a_large_model_is_bounded_by_its_activations():
    # 26 MB of activations a sample: 64 of them at once would take 1.7 GB.
    model = runner("pitch")
    shapes = []
    run = model._interpreter.run

    def spy(inputs, outputs, **more):
        shapes.extend(value.shape for value in inputs.values())
        return run(inputs, outputs, **more)

    model._interpreter.run = spy
    outputs = model.invoke(samples("pitch", 6))
    assert outputs["note"].shape == (6, 172, 88)
    assert 1 < max(shape[0] for shape in shapes) <= 5
    assert all(value.min() >= 0 and value.max() <= 1 for value in outputs.values())


# Operators and delegates


def test_xnnpack_is_left_out_where_it_refuses_the_graph():
    assert runner("cnn_float32").delegate == "xnnpack"
    model = runner("sparse_dynamic")
    assert model.delegate == "none"
    expected = runner("pruned_dynamic").invoke(samples("pruned_dynamic", 5))["scores"]
    np.testing.assert_allclose(model.invoke(samples("pruned_dynamic", 5))["scores"], expected, atol=0.02)
    assert model.delegate == "none"


def test_flex_operators_are_unsupported_by_name():
    error = refusal(lambda: runner("flex"), "UNSUPPORTED_OP")
    assert error.metadata["op"] == "FlexCholesky"
    assert "FlexCholesky" in error.message


def test_custom_operators_without_a_kernel_are_unsupported_by_name():
    error = refusal(lambda: runner("custom"), "UNSUPPORTED_OP")
    assert error.metadata["op"] == "Erfinv"


def test_string_inputs_are_unsupported():
    refusal(lambda: runner("string"), "UNSUPPORTED_INPUT")


def test_files_that_are_no_models_are_malformed(tmp_path):
    contract = contracts.foreign(path_of("cnn_float32"))
    whole = path_of("cnn_float32").read_bytes()
    for content in (b"", b"junk" * 100, whole[: len(whole) // 2]):
        (tmp_path / "model.tflite").write_bytes(content)
        refusal(lambda: Runner(tmp_path / "model.tflite", contract), "MALFORMED_MODEL")


def test_threads_with_a_runner_each_do_not_disturb_one_another():
    inputs = samples("cnn_int8", 8)
    expected = runner("cnn_int8").invoke(inputs)["scores"]
    wrong = []

    def work() -> None:
        model = runner("cnn_int8", threads=2)
        for _ in range(30):
            if not np.array_equal(model.invoke(inputs)["scores"], expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not wrong
    assert not any(worker.is_alive() for worker in workers)
