"""Data as INTERFACES §4: names, splits, casts, checks; and files that are not data."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from squeezeflow.core.datasets import Dataset, plain_inputs, synthetic_inputs
from squeezeflow.core.datasets.reading import StoredArray
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import contract_pb2

DATA = Path(__file__).parents[2] / "data"


def tensor(name: str, shape: list[int], dtype: str = "float32", **more) -> contract_pb2.TensorContract:
    return contract_pb2.TensorContract(name=name, shape=shape, dtype=dtype, **more)


def contract(*inputs, outputs=None) -> contract_pb2.Contract:
    return contract_pb2.Contract(
        inputs=inputs or [tensor("image", [-1, 2, 2, 1])],
        outputs=outputs or [tensor("scores", [-1, 3], meaning="probabilities")],
    )


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(params=["npz", "folder"])
def write(request, tmp_path):
    def write(**arrays: np.ndarray) -> Path:
        if request.param == "npz":
            np.savez(tmp_path / "data.npz", **arrays)
            return tmp_path / "data.npz"
        (tmp_path / "data").mkdir()
        for name, array in arrays.items():
            np.save(tmp_path / "data" / f"{name}.npy", array)
        return tmp_path / "data"

    return write


@pytest.fixture
def bind(write):
    def bind(model: contract_pb2.Contract | None = None, scale=(), offset=(), **arrays: np.ndarray):
        return Dataset.open(write(**arrays)).bind(model or contract(), scale=scale, offset=offset)

    return bind


def refusal(call, reason: str = "DATA_MISMATCH") -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        call()
    assert caught.value.reason == reason
    assert "\n" not in caught.value.message
    return caught.value


# Names and splits


def test_arrays_are_bound_by_split_and_the_rest_is_reported(bind):
    bound = bind(
        x_train=floats(6, 2, 2, 1),
        y_train=np.arange(6) % 3,
        x_test=floats(3, 2, 2, 1),
        len_train=np.arange(6),
        classes=np.array(["a", "b", "c"]),
    )
    assert [bound.count(split) for split in ("train", "calibration", "validation", "test")] == [6, 0, 0, 3]
    assert bound.has_targets("train")
    assert not bound.has_targets("test")
    assert bound.labels == ("a", "b", "c")
    assert bound.notes == ("arrays not used: len_train",)


def test_rows_come_by_contract_name_for_slices_and_row_numbers(bind):
    x = floats(6, 2, 2, 1)
    bound = bind(x_train=x, y_train=np.arange(6) % 3)
    np.testing.assert_array_equal(bound.inputs("train", slice(1, 3))["image"], x[1:3])
    np.testing.assert_array_equal(bound.inputs("train", np.array([4, 0]))["image"], x[[4, 0]])
    np.testing.assert_array_equal(bound.targets("train", np.array([4, 0]))["scores"], [1, 0])


def test_input_names_and_output_names_bind_in_any_order(bind):
    model = contract(
        tensor("z_first", [-1, 2]),
        tensor("a_second", [-1, 2]),
        outputs=[tensor("age", [-1, 1], meaning="values"), tensor("kind", [-1, 3])],
    )
    first, second = floats(4, 2), floats(4, 2) + 5
    bound = bind(
        model,
        **{
            "a_second_test": second,
            "z_first_test": first,
            "y.kind_test": np.array([0, 1, 2, 0]),
            "y.age_test": np.array([30, 40, 50, 60]),
        },
    )
    inputs = bound.inputs("test", slice(None))
    np.testing.assert_array_equal(inputs["z_first"], first)
    np.testing.assert_array_equal(inputs["a_second"], second)
    assert bound.target_kind("age") == "values"
    assert bound.target_kind("kind") == "class_ids"
    assert bound.targets("test", slice(0, 2))["age"].tolist() == [[30.0], [40.0]]


def test_an_input_that_is_called_y_is_an_input(bind):
    model = contract(tensor("y", [-1, 2]))
    bound = bind(model, **{"y_test": floats(2, 2), "y.scores_test": np.array([0, 1])})
    assert bound.inputs("test", slice(None))["y"].shape == (2, 2)
    assert bound.target_kind("scores") == "class_ids"


@pytest.mark.parametrize("name", ["x", "y", "image", "y.scores"])
def test_arrays_without_a_suffix_are_refused_in_a_job_naming_the_four(bind, name):
    error = refusal(lambda: bind(**{name: floats(3, 2, 2, 1)}))
    assert f"array {name} " in error.message
    for suffix in ("_train", "_calibration", "_validation", "_test"):
        assert suffix in error.message


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"picture_train": floats(2, 2, 2, 1)}, ["image", "picture_train", "x_train"]),
        ({"x_train": floats(2, 2, 2, 1), "y_test": np.arange(2)}, ["image_test is missing", "y_test"]),
        ({"x_train": floats(2, 2, 2, 1), "y_train": np.arange(3)}, ["x_train has 2", "y_train 3"]),
        (
            {"x_train": floats(2, 2, 2, 1), "image_train": floats(2, 2, 2, 1)},
            ["x_train", "image_train", "leave one out"],
        ),
        ({"x_train": floats(0, 2, 2, 1)}, ["x_train", "no samples"]),
        ({"x_train": np.float32(1)}, ["x_train", "no samples"]),
    ],
)
def test_splits_that_are_not_whole_are_refused(bind, arrays, words):
    error = refusal(lambda: bind(**arrays))
    assert all(word in error.message for word in words), error.message


def test_x_and_y_are_refused_where_the_model_has_several(bind):
    model = contract(tensor("a", [-1, 2]), tensor("b", [-1, 2]))
    assert "a_train, b_train" in refusal(lambda: bind(model, x_train=floats(2, 2))).message


def test_y_is_refused_where_the_model_has_several_outputs(bind):
    model = contract(tensor("a", [-1, 2]), outputs=[tensor("p", [-1, 2]), tensor("q", [-1, 2])])
    error = refusal(lambda: bind(model, x_train=floats(2, 2), y_train=np.arange(2)))
    assert "y.p_train, y.q_train" in error.message


@pytest.mark.parametrize(("n", "fits"), [(3, True), (2, False), (4, False)])
def test_classes_name_every_unit(bind, n, fits):
    def call():
        return bind(x_train=floats(2, 2, 2, 1), classes=np.array([f"class {i}" for i in range(n)]))

    if fits:
        assert len(call().labels) == n
    else:
        assert "classes" in refusal(call).message


# Casts and the affine


def test_bytes_for_a_float_input_need_a_scale_and_both_answers_are_named(bind):
    pixels = np.full((2, 2, 2, 1), 255, np.uint8)
    error = refusal(lambda: bind(x_train=pixels))
    assert "x_train" in error.message
    assert "--scale 1/255" in error.message
    assert "--scale 1 " in error.message


def test_an_offset_alone_is_not_a_scale(bind):
    refusal(lambda: bind(x_train=np.zeros((2, 2, 2, 1), np.uint8), offset=[1.0]))


def test_the_affine_is_value_times_scale_plus_offset(bind):
    pixels = np.array([0, 51, 255, 102], np.uint8).reshape(1, 2, 2, 1)
    bound = bind(x_train=pixels, scale=[2 / 255], offset=[-1.0])
    values = bound.inputs("train", slice(None))["image"]
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.reshape(-1), [-1, -0.6, 1, -0.2], atol=1e-7)
    assert list(bound.affine.scale) == [2 / 255]
    assert list(bound.affine.offset) == [-1.0]


def test_scale_one_takes_bytes_as_they_are(bind):
    bound = bind(x_train=np.full((1, 2, 2, 1), 200, np.uint8), scale=[1])
    assert bound.inputs("train", slice(None))["image"].reshape(-1).tolist() == [200.0] * 4


def test_an_affine_per_channel_runs_along_the_last_axis(bind):
    model = contract(tensor("image", [-1, 1, 1, 3]))
    pixels = np.array([10, 20, 30], np.uint8).reshape(1, 1, 1, 3)
    bound = bind(model, x_train=pixels, scale=[1, 0.5, 0.1], offset=[0, 0, 7])
    np.testing.assert_allclose(bound.inputs("train", slice(None))["image"].reshape(-1), [10, 10, 10])


def test_an_affine_of_another_number_of_channels_is_refused(bind):
    error = refusal(lambda: bind(x_train=floats(1, 2, 2, 1), scale=[1.0, 2.0]), "INVALID_PARAMETER")
    assert error.fields[0][0] == "scale"
    assert "image" in error.message


@pytest.mark.parametrize("scale", [[0.0], [float("nan")], [float("inf")]])
def test_scales_that_destroy_the_data_are_refused(bind, scale):
    refusal(lambda: bind(x_train=floats(1, 2, 2, 1), scale=scale), "INVALID_PARAMETER")


def test_the_affine_of_the_contract_is_used_where_the_request_has_none(bind):
    affine = contract_pb2.Affine(scale=[1 / 255], offset=[0])
    model = contract(tensor("image", [-1, 2, 2, 1], affine=affine))
    bound = bind(model, x_train=np.full((1, 2, 2, 1), 255, np.uint8))
    np.testing.assert_allclose(bound.inputs("train", slice(None))["image"], 1.0)
    assert bound.affine == affine


def test_a_request_stands_above_the_affine_of_the_contract(bind):
    model = contract(tensor("image", [-1, 2, 2, 1], affine=contract_pb2.Affine(scale=[1 / 255], offset=[0])))
    bound = bind(model, x_train=np.full((1, 2, 2, 1), 255, np.uint8), scale=[1])
    np.testing.assert_allclose(bound.inputs("train", slice(None))["image"], 255.0)


def test_no_affine_is_reported_where_none_is_stated(bind):
    assert bind(x_train=floats(1, 2, 2, 1)).affine is None


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint16", "bool", "float64", "float16"])
def test_lossless_casts_are_made_and_told(bind, dtype):
    values = np.array([0, 1, 1, 0]).astype(dtype).reshape(1, 2, 2, 1)
    bound = bind(x_train=values)
    assert bound.inputs("train", slice(None))["image"].dtype == np.float32
    assert bound.notes == (f"x_train: {dtype} was cast to float32",)


@pytest.mark.parametrize("value", [2**24, -(2**24)])
def test_integers_that_a_float_holds_are_taken(bind, value):
    bound = bind(x_train=np.full((1, 2, 2, 1), value, np.int64))
    assert bound.inputs("train", slice(None))["image"][0, 0, 0, 0] == value


@pytest.mark.parametrize("value", [2**24 + 1, -(2**24) - 1, 2**63 - 1])
def test_integers_that_a_float_cannot_hold_are_refused_with_their_index(bind, value):
    x = np.zeros((3, 2, 2, 1), np.int64)
    x[2, 0, 1, 0] = value
    error = refusal(lambda: bind(x_train=x))
    assert "x_train" in error.message
    assert "[2, 0, 1, 0]" in error.message


def test_a_missing_trailing_channel_axis_is_added_and_told(bind):
    bound = bind(x_train=floats(3, 2, 2))
    assert bound.inputs("train", slice(0, 2))["image"].shape == (2, 2, 2, 1)
    assert bound.notes == ("x_train: one trailing channel axis was added",)


def test_whole_numbers_for_an_integer_input_keep_their_values(bind):
    model = contract(tensor("ids", [-1, 4], "int32"))
    bound = bind(model, x_train=np.array([[1, 2, 3, 2**31 - 1]]))
    assert bound.inputs("train", slice(None))["ids"].tolist() == [[1, 2, 3, 2**31 - 1]]
    assert bound.inputs("train", slice(None))["ids"].dtype == np.int32
    assert bound.notes == ("x_train: int64 was cast to int32",)


def test_whole_numbers_out_of_range_are_refused_with_their_index(bind):
    model = contract(tensor("ids", [-1, 2], "int32"))
    assert "[0, 1]" in refusal(lambda: bind(model, x_train=np.array([[1, 2**31]]))).message


def test_the_affine_leaves_integer_inputs_alone(bind):
    model = contract(tensor("ids", [-1, 1], "int32"), tensor("image", [-1, 1]))
    bound = bind(model, ids_test=np.array([[4]]), image_test=np.array([[4]], np.uint8), scale=[0.5])
    inputs = bound.inputs("test", slice(None))
    assert inputs["ids"].tolist() == [[4]]
    assert inputs["image"].tolist() == [[2.0]]


def test_an_affine_for_a_model_without_float_inputs_is_refused(bind):
    model = contract(tensor("ids", [-1, 1], "int32"))
    refusal(lambda: bind(model, x_test=np.array([[4]]), scale=[0.5]), "INVALID_PARAMETER")


def test_data_of_a_quantized_input_is_in_real_values(bind):
    quantization = contract_pb2.Quantization(scale=0.1, zero_point=3)
    model = contract(tensor("image", [-1, 2], "int8", quantization=quantization))
    bound = bind(model, x_test=floats(2, 2))
    assert bound.inputs("test", slice(None))["image"].dtype == np.float32


@pytest.mark.parametrize(
    ("array", "model", "words"),
    [
        (floats(2, 3, 2, 1), None, ["(2, 3, 2, 1)", "[-1, 2, 2, 1]"]),
        (floats(2, 2), None, ["(2, 2)"]),
        (floats(2, 2, 2, 1, 1), None, ["(2, 2, 2, 1, 1)"]),
        (np.array([["a", "b"]]), contract(tensor("image", [-1, 2])), ["<U1", "float32"]),
        (np.array([[1j, 2]]), contract(tensor("image", [-1, 2])), ["complex128"]),
        (floats(1, 2), contract(tensor("ids", [-1, 2], "int32")), ["float32", "int32"]),
        (np.array([[1, 2]]), contract(tensor("flags", [-1, 2], "bool")), ["int64", "bool"]),
    ],
)
def test_arrays_of_another_shape_or_kind_are_refused(bind, array, model, words):
    error = refusal(lambda: bind(model, x_train=array))
    assert "x_train" in error.message
    assert all(word in error.message for word in words), error.message


def test_free_axes_take_any_size(bind):
    bound = bind(contract(tensor("image", [-1, -1, -1, 1])), x_test=floats(2, 5, 7, 1))
    assert bound.inputs("test", slice(None))["image"].shape == (2, 5, 7, 1)


def test_rows_of_a_model_with_a_fixed_batch_of_one_are_samples(bind):
    bound = bind(contract(tensor("series", [1, 4, 2])), x_test=floats(5, 4, 2))
    assert bound.count("test") == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale", [(), (0.5,)])
def test_numbers_that_are_not_finite_are_refused_with_their_index(bind, bad, scale):
    x = floats(5, 2, 2)
    x[3, 1, 0] = bad
    error = refusal(lambda: bind(x_train=floats(5, 2, 2), x_validation=x, scale=scale))
    assert "x_validation" in error.message
    assert "[3, 1, 0]" in error.message
    assert error.metadata == {"array": "x_validation", "index": "[3, 1, 0]"}


def test_numbers_too_large_for_the_model_are_not_finite_either(bind):
    x = np.zeros((1, 2, 2, 1))
    x[0, 1, 1, 0] = 1e300
    assert "[0, 1, 1, 0]" in refusal(lambda: bind(x_train=x)).message


def test_integers_that_the_affine_makes_infinite_are_refused(bind):
    assert "[0, 0, 0, 0]" in refusal(lambda: bind(x_train=np.full((1, 2, 2, 1), 7), scale=[1e38])).message


def test_string_inputs_are_unsupported(bind):
    error = refusal(lambda: bind(contract(tensor("text", [-1], "string")), x_test=floats(2)), "UNSUPPORTED_INPUT")
    assert "text" in error.message


def test_inputs_without_a_batch_axis_are_unsupported(bind):
    refusal(lambda: bind(contract(tensor("training", [], "bool")), x_test=floats(2)), "UNSUPPORTED_INPUT")


# Labels


@pytest.mark.parametrize(
    ("output", "labels", "kind", "expected"),
    [
        (tensor("o", [-1, 3]), np.array([2, 0], np.uint8), "class_ids", [2, 0]),
        (tensor("o", [-1, 3]), np.array([[2], [0]]), "class_ids", [2, 0]),
        (tensor("o", [-1, 3]), np.array([[0, 0, 1], [1, 0, 0]]), "one_hot", [[0, 0, 1], [1, 0, 0]]),
        (tensor("o", [-1, 3]), np.array([[0.2, 0.2, 0.6], [1, 0, 0]]), "values", [[0.2, 0.2, 0.6], [1, 0, 0]]),
        (tensor("o", [-1, -1]), np.array([7, 0]), "class_ids", [7, 0]),
        (tensor("o", [-1, 1], meaning="probabilities"), np.array([1, 0]), "class_ids", [1, 0]),
        (tensor("o", [-1, 1], meaning="logits"), np.array([[1.0], [0.0]]), "class_ids", [1, 0]),
        (tensor("o", [-1, 1], meaning="probabilities"), np.array([0.7, 0.1]), "values", [[0.7], [0.1]]),
        (tensor("o", [-1, 1], meaning="values"), np.array([1, 0]), "values", [[1], [0]]),
        (tensor("o", [-1, 1]), np.array([1, 0]), "class_ids", [1, 0]),
        (tensor("o", [-1, 1]), np.array([30, 41]), "values", [[30], [41]]),
        (tensor("o", [-1, 1]), np.array([1.0, 0.0]), "values", [[1], [0]]),
        (tensor("o", [-1]), np.array([[1.5], [2.5]]), "values", [1.5, 2.5]),
        (tensor("o", [-1, 2, 3]), np.array([[0, 1], [2, 2]]), "class_ids", [[0, 1], [2, 2]]),
        (tensor("o", [-1, 2, 2, 1], meaning="values"), np.zeros((2, 2, 2)), "values", np.zeros((2, 2, 2, 1)).tolist()),
    ],
)
def test_labels_are_class_ids_one_hot_or_values(bind, output, labels, kind, expected):
    bound = bind(contract(outputs=[output]), x_test=floats(2, 2, 2, 1), y_test=labels)
    assert bound.target_kind("o") == kind
    values = bound.targets("test", slice(None))["o"]
    assert values.dtype == (np.int64 if kind == "class_ids" else np.float32)
    np.testing.assert_allclose(values, np.asarray(expected, np.float32))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_labels_out_of_range_are_refused_with_their_index(bind, split, label):
    y = np.array([0, 1, 2, label])
    error = refusal(lambda: bind(**{f"x_{split}": floats(4, 2, 2, 1), f"y_{split}": y}))
    assert f"y_{split}" in error.message
    assert "[3]" in error.message
    assert "0 to 2" in error.message


@pytest.mark.parametrize(
    ("output", "labels", "words"),
    [
        (tensor("o", [-1, 3]), np.array([0.0, 1.0]), ["float64", "integers"]),
        (tensor("o", [-1, 3]), np.array(["a", "b"]), ["<U1"]),
        (tensor("o", [-1, 3]), np.zeros((2, 4)), ["(2, 4)", "[-1, 3]"]),
        (tensor("o", [-1, 3]), np.array([[0, 0, np.nan], [0, 0, 1]]), ["[0, 2]"]),
        (tensor("o", [-1, 1], meaning="values"), np.array([1.0, np.inf]), ["[1]"]),
        (tensor("o", [-1, 1], meaning="probabilities"), np.array([1, 2]), ["[1]", "0 and 1"]),
    ],
)
def test_labels_that_are_none_of_the_three_are_refused(bind, output, labels, words):
    error = refusal(lambda: bind(contract(outputs=[output]), x_test=floats(2, 2, 2, 1), y_test=labels))
    assert "y_test" in error.message
    assert all(word in error.message for word in words), error.message


def test_splits_that_store_labels_differently_are_refused(bind):
    arrays = {"x_train": floats(3, 2, 2, 1), "y_train": np.arange(3), "x_test": floats(3, 2, 2, 1), "y_test": np.eye(3)}
    error = refusal(lambda: bind(**arrays))
    assert "y_train holds class_ids" in error.message
    assert "y_test holds one_hot" in error.message


def test_outputs_without_labels_have_no_kind(bind):
    assert bind(x_test=floats(2, 2, 2, 1)).target_kind("scores") is None


# Draws


def test_calibration_uses_all_calibration_arrays(bind):
    x = floats(7, 2, 2, 1)
    samples = bind(x_train=floats(50, 2, 2, 1), x_calibration=x).calibration(3, 0)
    np.testing.assert_array_equal(np.concatenate([sample["image"] for sample in samples]), x)
    assert samples[0]["image"].shape == (1, 2, 2, 1)


def test_calibration_draws_from_train_by_seed(bind):
    bound = bind(x_train=np.arange(50, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32))

    def drawn(seed: int) -> list[float]:
        return [float(sample["image"][0, 0, 0, 0]) for sample in bound.calibration(20, seed)]

    assert len(set(drawn(0))) == 20
    assert drawn(0) == drawn(0) != drawn(1)
    assert len(bound.calibration(500, 0)) == 50


def test_calibration_without_data_says_what_to_add(bind):
    error = refusal(lambda: bind(x_test=floats(2, 2, 2, 1)).calibration(5, 0), "DATA_MISSING")
    assert "x_calibration" in error.message


@pytest.mark.parametrize("split", ["test", "validation", "calibration", "train"])
def test_comparison_samples_come_from_the_first_split_there_is(bind, split):
    order = ["test", "validation", "calibration", "train"]
    arrays = {f"x_{name}": floats(5, 2, 2, 1) for name in order[order.index(split) :]}
    samples, where = bind(**arrays).samples(3, 0)
    assert where == split
    assert samples["image"].shape == (3, 2, 2, 1)


def test_fitting_holds_out_a_tenth_of_train_by_seed(bind):
    bound = bind(x_train=floats(50, 2, 2, 1), y_train=np.arange(50) % 3)
    rows = bound.fit_rows(0)
    assert rows.validation_split == "train"
    assert len(rows.validation) == 5
    assert sorted([*rows.train, *rows.validation]) == list(range(50))
    assert rows.validation.tolist() == bound.fit_rows(0).validation.tolist() != bound.fit_rows(1).validation.tolist()


def test_fitting_watches_the_validation_arrays_where_there_are_any(bind):
    bound = bind(
        x_train=floats(9, 2, 2, 1),
        y_train=np.arange(9) % 3,
        x_validation=floats(4, 2, 2, 1),
        y_validation=np.arange(4) % 3,
    )
    rows = bound.fit_rows(0)
    assert (len(rows.train), rows.validation_split, len(rows.validation)) == (9, "validation", 4)


def test_fitting_without_labels_says_what_to_add(bind):
    assert "y_train" in refusal(lambda: bind(x_train=floats(3, 2, 2, 1)).fit_rows(0), "DATA_MISSING").message


# infer, and no data at all


def test_infer_reads_arrays_without_a_suffix(write):
    path = write(x=np.full((2, 2, 2), 255, np.uint8))
    values = plain_inputs(path, contract(), scale=[1 / 255])["image"]
    np.testing.assert_allclose(values, np.ones((2, 2, 2, 1)))


def test_infer_names_the_array_that_is_missing(write):
    path = write(x_test=floats(2, 2, 2, 1))
    error = refusal(lambda: plain_inputs(path, contract()))
    assert "image" in error.message
    assert "x_test" in error.message


def test_infer_needs_as_many_rows_of_every_input(write):
    path = write(a=floats(2, 2), b=floats(3, 2))
    refusal(lambda: plain_inputs(path, contract(tensor("a", [-1, 2]), tensor("b", [-1, 2]))))


def test_synthetic_inputs_follow_dtype_and_shape_and_seed():
    quantization = contract_pb2.Quantization(scale=0.5, zero_point=0)
    model = contract(
        tensor("image", [-1, -1, 8, 3]),
        tensor("ids", [1, 5], "int32"),
        tensor("bytes", [-1, 4], "uint8"),
        tensor("flags", [-1, 4], "bool"),
        tensor("quantized", [-1, 4], "int8", quantization=quantization),
    )
    inputs = synthetic_inputs(model, 6, seed=3)
    assert inputs["image"].shape == (6, 32, 8, 3)
    assert inputs["image"].dtype == np.float32
    assert set(np.unique(inputs["ids"])) == {0, 1}
    assert inputs["bytes"].max() > 100
    assert inputs["flags"].dtype == np.bool_
    assert inputs["quantized"].dtype == np.float32
    assert 10 < np.abs(inputs["quantized"]).max() <= 64
    again, other = synthetic_inputs(model, 6, seed=3), synthetic_inputs(model, 6, seed=4)
    np.testing.assert_array_equal(inputs["image"], again["image"])
    assert not np.array_equal(inputs["image"], other["image"])


# Files


def test_real_data_binds_with_a_scale():
    model = contract(tensor("image", [-1, 28, 28, 1]), outputs=[tensor("scores", [-1, 10])])
    bound = Dataset.open(DATA / "fashion_mnist.npz").bind(model, scale=[1 / 255])
    assert (bound.count("train"), bound.count("test")) == (10000, 10000)
    assert bound.target_kind("scores") == "class_ids"
    batch = bound.inputs("test", slice(0, 100))["image"]
    assert batch.shape == (100, 28, 28, 1)
    assert 0 <= batch.min() < batch.max() <= 1


def test_real_series_bind_and_their_lengths_are_reported():
    model = contract(tensor("series", [1, 29, 12]), outputs=[tensor("scores", [1, 9])])
    bound = Dataset.open(DATA / "japanese_vowels.npz").bind(model)
    assert bound.labels == tuple("123456789")
    assert bound.notes == ("arrays not used: len_test, len_train",)


def test_arrays_of_a_folder_are_mapped_and_read_in_pieces(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "x_train.npy", "w+", np.uint8, (64, 1024, 1024))
    array[50, 3, 2] = 9
    array.flush()
    dataset = Dataset.open(tmp_path)
    stored = dataset.arrays["x_train"]
    assert isinstance(stored.values, np.memmap)
    assert [start for start, _ in stored.chunks()] == [0, 16, 32, 48]
    model = contract(tensor("image", [-1, 1024, 1024]))
    assert dataset.bind(model, scale=[1]).inputs("train", np.array([50]))["image"][0, 3, 2] == 9


def test_a_folder_may_hold_empty_arrays_that_nothing_uses(tmp_path):
    np.save(tmp_path / "x_test.npy", floats(2, 2, 2, 1))
    np.save(tmp_path / "nothing.npy", np.empty((0, 4)))
    assert Dataset.open(tmp_path).bind(contract()).notes == ("arrays not used: nothing",)


def npy(array: np.ndarray, **more) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **more)
    return stream.getvalue()


def header(text: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    head = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(head).to_bytes(2, "little") + head + data


BAD_ARRAYS = {
    "empty": b"",
    "junk": b"not an array at all" * 20,
    "truncated": npy(floats(10, 2, 2, 1))[:-7],
    "longer than its shape": npy(floats(10, 2, 2, 1)) + b"1234",
    "objects": npy(np.array([{"a": 1}, None], dtype=object), allow_pickle=True),
    "huge shape": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000000)}", b"1234"),
    "negative shape": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}", b"1234"),
    "shape of text": header("{'descr': '<f4', 'fortran_order': False, 'shape': ('a',)}", b"1234"),
    "dtype of text": header("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,)}", b"1234"),
    "code in the header": header("__import__('os').system('true')"),
    "nesting without end": header("(" * 100),
    "future version": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", b"1234", b"\x09\x00"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
@pytest.mark.parametrize("container", ["npz", "folder"])
def test_arrays_that_cannot_be_read_are_refused_by_name(tmp_path, kind, container):
    if container == "npz":
        path = tmp_path / "data.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x_train.npy", BAD_ARRAYS[kind])
    else:
        path = tmp_path
        (path / "x_train.npy").write_bytes(BAD_ARRAYS[kind])
    assert "x_train" in refusal(lambda: Dataset.open(path)).message


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"junk" * 100])
def test_files_that_are_no_archives_are_refused(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    assert "data.npz" in refusal(lambda: Dataset.open(tmp_path / "data.npz")).message


def test_an_archive_or_folder_without_arrays_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    refusal(lambda: Dataset.open(tmp_path / "data.npz"))
    (tmp_path / "folder").mkdir()
    refusal(lambda: Dataset.open(tmp_path / "folder"))


def test_a_path_that_is_not_there_is_refused(tmp_path):
    assert "nowhere.npz" in refusal(lambda: Dataset.open(tmp_path / "nowhere.npz")).message


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_names_an_array_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x_test.npy", npy(floats(1, 2, 2, 1)))
        archive.writestr("x_test.npy", npy(floats(2, 2, 2, 1)))
    assert "x_test" in refusal(lambda: Dataset.open(tmp_path / "data.npz")).message


def test_a_truncated_archive_is_refused(tmp_path):
    np.savez(tmp_path / "whole.npz", x_train=floats(100, 2, 2, 1))
    (tmp_path / "data.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-30])
    refusal(lambda: Dataset.open(tmp_path / "data.npz"))


@pytest.mark.parametrize("compressed", [True, False])
def test_a_flipped_bit_in_an_archive_is_found_at_bind(tmp_path, compressed):
    x = np.full((4, 2, 2, 1), 3, np.uint8)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "data.npz", x_train=x, y_train=np.arange(4) % 3)
    data = bytearray((tmp_path / "data.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "data.npz") as archive:
        info = archive.getinfo("x_train.npy")
    data[info.header_offset + 30 + len("x_train.npy") + info.compress_size - 1] ^= 1
    (tmp_path / "data.npz").write_bytes(data)

    def call() -> None:
        Dataset.open(tmp_path / "data.npz").bind(contract(), scale=[1])

    assert "x_train" in refusal(call).message


def test_random_damage_never_raises_anything_else(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", x_train=floats(20, 2, 2, 1), y_train=np.arange(20) % 3)
    whole = (tmp_path / "whole.npz").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.integers(1, 8)):
            data[rng.integers(len(data))] = rng.integers(256)
        (tmp_path / "data.npz").write_bytes(data)
        try:
            Dataset.open(tmp_path / "data.npz").bind(contract())
        except SqueezeflowError as error:
            assert error.reason == "DATA_MISMATCH"  # noqa: PT017
            refused += 1
    assert refused > 200


def test_values_are_read_once_and_kept():
    calls = []

    def load() -> np.ndarray:
        calls.append(1)
        return np.zeros(3)

    stored = StoredArray("x", np.dtype(np.float64), (3,), load)
    assert stored.values is stored.values
    assert len(calls) == 1
