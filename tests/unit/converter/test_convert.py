"""Convert and Export on real models: proved files under the source's names, typed refusals for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.converter import convert, export
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.step import ArtifactPath, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit.source import open_source
from squeezeflow.v1 import artifact_pb2, technique_pb2

DATA = Path(__file__).parents[2] / "data" / "models"
KINDS = {
    ".keras": artifact_pb2.ARTIFACT_KIND_KERAS,
    ".h5": artifact_pb2.ARTIFACT_KIND_HDF5,
    ".hdf5": artifact_pb2.ARTIFACT_KIND_HDF5,
    "": artifact_pb2.ARTIFACT_KIND_SAVED_MODEL,
}


class Told(list[tuple[float, str]]):
    """A `Report` that keeps what it was told."""

    def __call__(self, fraction: float, stage: str, **details: Any) -> None:
        self.append((fraction, stage))


def step(model: Path, workdir: Path, *, data: Path | None = None, **options: Any) -> StepInputs:
    artifacts = {"model": ArtifactPath(KINDS[model.suffix], model)}
    if data is not None:
        artifacts["data"] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, data)
    workdir.mkdir(exist_ok=True)
    return StepInputs(artifacts, workdir, **options)


def converted(model: Path, workdir: Path, **options: Any) -> StepOutputs:
    return convert.run(technique_pb2.Convert(), step(model, workdir, **options), Told())


def names(tensors: Any) -> list[str]:
    return [tensor.name for tensor in tensors]


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_tf_keras_model_becomes_a_proved_float_file(name: str, tmp_path: Path) -> None:
    model = models.tf_keras_file(tmp_path, name=name)
    told = Told()
    outputs = convert.run(technique_pb2.Convert(), step(model, tmp_path / "work"), told)
    assert outputs.artifact == ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, tmp_path / "work" / "model.tflite")
    assert [stage for _, stage in told] == ["loading", "converting", "proving"]
    assert {"load", "convert", "prove"} == set(outputs.seconds)
    assert all(invariant.passed for invariant in outputs.invariants)
    file = TfliteFile.read(outputs.artifact.path)
    assert file.operators[0].name == "CONV_2D"
    assert {operator.arithmetic for operator in file.operators} == {"float"}
    assert outputs.contract is not None
    images = np.random.default_rng(0).uniform(size=(7, 28, 28, 1)).astype(np.float32)
    found = Runner(outputs.artifact.path, outputs.contract).invoke({"image": images})
    expected = models.tf_keras_cnn()(images, training=False)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)


def test_a_keras_3_model_does_not_become_nan(tmp_path: Path) -> None:
    outputs = converted(models.keras3_file(tmp_path), tmp_path / "work")
    assert outputs.metrics["max_abs_diff"].value < 1e-5
    assert outputs.contract is not None
    assert names(outputs.contract.inputs) == ["image"]
    assert names(outputs.contract.outputs) == ["probabilities"]


def test_the_chosen_signature_is_what_is_converted(tmp_path: Path) -> None:
    outputs = converted(models.two_signatures(tmp_path), tmp_path / "work", signature="swap")
    assert outputs.contract is not None
    assert outputs.contract.signature == "swap"
    assert names(outputs.contract.outputs) == ["difference", "total"]
    assert outputs.artifact is not None
    runner = Runner(outputs.artifact.path, outputs.contract)
    a, b = np.full((2, 4), 10, np.float32), np.ones((2, 4), np.float32)
    np.testing.assert_allclose(runner.invoke({"a": a, "b": b})["difference"], a - 3 * b)


def test_a_real_function_model_is_as_close_to_its_source_as_its_authors_own_file(tmp_path: Path) -> None:
    outputs = converted(DATA / "basic_pitch" / "nmp", tmp_path / "work", threads=2)
    assert outputs.metrics["max_abs_diff"].value < 1e-4
    assert outputs.contract is not None
    assert names(outputs.contract.outputs) == ["contour", "note", "onset"]
    assert {tensor.meaning for tensor in outputs.contract.outputs} == {"probabilities"}


def test_a_recurrent_model_is_proved_sample_by_sample(tmp_path: Path) -> None:
    outputs = converted(models.recurrent_file(tmp_path), tmp_path / "work")
    assert outputs.contract is not None
    assert list(outputs.contract.inputs[0].shape) == [1, 12, 3]
    assert any("batch is fixed to 1" in note for note in outputs.notes)


@pytest.mark.parametrize("make", ["tf_keras GRU", "keras 3 LSTM", "function", "function without element shape"])
def test_a_recurrent_saved_model_with_a_free_batch_is_converted_with_batch_1(make: str, tmp_path: Path) -> None:
    outputs = converted(recurrent_saved_model(make, tmp_path / "model"), tmp_path / "work")
    assert outputs.contract is not None
    assert list(outputs.contract.inputs[0].shape) == [1, 12, 3]
    assert any("batch is fixed to 1" in note for note in outputs.notes)
    assert outputs.metrics["max_abs_diff"].value < 1e-5


def recurrent_saved_model(make: str, folder: Path) -> Path:
    """Writes a SavedModel that loops over 12 steps of a free batch."""
    import tensorflow as tf

    if not make.startswith("function"):
        import keras
        import tf_keras

        library = tf_keras if make.startswith("tf") else keras
        cell = getattr(library.layers, make.split()[-1])
        model = library.Sequential([library.layers.Input((12, 3)), cell(5), library.layers.Dense(4)])
        return models.save(model, folder)
    module = tf.Module()
    module.kernel = tf.Variable(np.random.default_rng(0).normal(size=(8, 5)).astype("f"))
    known = None if "without" in make else (None, 5)

    @tf.function(input_signature=[tf.TensorSpec((None, 12, 3), tf.float32, name="sequence")])
    def loop(sequence: Any) -> Any:
        state = tf.zeros((tf.shape(sequence)[0], 5))
        states = tf.TensorArray(tf.float32, 12, element_shape=known)
        for step in tf.range(12):
            state = tf.tanh(tf.concat([sequence[:, step], state], -1) @ module.kernel)
            state = tf.ensure_shape(state, (None, 5))
            states = states.write(step, state)
        return {"last": state, "states": tf.transpose(states.stack(), [1, 0, 2])}

    tf.saved_model.save(module, str(folder), signatures={"serving_default": loop})
    return folder


def test_a_loop_that_does_not_need_it_keeps_its_free_batch(tmp_path: Path) -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])
    def rows(x: Any) -> Any:
        return {"y": tf.map_fn(lambda row: row * 2.0, x)}

    tf.saved_model.save(tf.Module(), str(tmp_path / "model"), signatures={"serving_default": rows})
    outputs = converted(tmp_path / "model", tmp_path / "work")
    assert outputs.contract is not None
    assert list(outputs.contract.inputs[0].shape) == [-1, 3]


def test_pruned_kernels_are_stored_sparse_where_that_is_asked_for(tmp_path: Path) -> None:
    model = pruned_file(tmp_path)
    inputs = step(model, tmp_path / "sparse")
    outputs = convert.run(technique_pb2.Convert(sparse_encoding=True), inputs, Told())
    dense = converted(model, tmp_path / "dense")
    assert outputs.artifact is not None
    assert dense.artifact is not None
    assert outputs.artifact.path.stat().st_size < 0.5 * dense.artifact.path.stat().st_size
    assert any(weight.tensor.sparse for weight in TfliteFile.read(outputs.artifact.path).weights)
    assert outputs.contract is not None
    assert Runner(outputs.artifact.path, outputs.contract).delegate == "xnnpack"
    assert {invariant.name: invariant.passed for invariant in outputs.invariants}["sparsity"]
    unpruned = convert.run(
        technique_pb2.Convert(sparse_encoding=True), step(models.tf_keras_file(tmp_path), tmp_path / "none"), Told()
    )
    assert any(note.startswith("no kernel has zeros enough") for note in unpruned.notes)


def pruned_file(folder: Path) -> Path:
    """Writes the tf_keras CNN with three quarters of its larger kernels zero."""
    model = models.tf_keras_cnn()
    for name in ("conv_2", "dense"):
        kernel, *rest = model.get_layer(name).get_weights()
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.75)] = 0
        model.get_layer(name).set_weights([kernel, *rest])
    return models.save(model, folder / "pruned.keras")


def test_the_jobs_data_is_checked_and_used(tmp_path: Path) -> None:
    model = models.tf_keras_file(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_test=images, y_test=np.arange(8))
    outputs = converted(model, tmp_path / "work", data=tmp_path / "data.npz", scale=(1 / 255,))
    assert "compared on 8 samples of test (seed 0)" in outputs.notes
    assert outputs.contract is not None
    assert list(outputs.contract.inputs[0].affine.scale) == [1 / 255]
    with pytest.raises(SqueezeflowError) as caught:
        converted(model, tmp_path / "work", data=tmp_path / "data.npz")
    assert caught.value.reason == "DATA_MISMATCH"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (models.needs_flex, "UNSUPPORTED_OP"),
        (models.gives_nan, "NON_FINITE_OUTPUT"),
        (models.string_input, "UNSUPPORTED_INPUT"),
        (models.two_signatures, "INVALID_PARAMETER"),
        (lambda folder: models.lambda_layer(folder, folder / "marker"), "CODE_IN_MODEL"),
        (lambda folder: models.truncated(models.tf_keras_file(folder), folder / "cut.keras"), "MALFORMED_MODEL"),
    ],
    ids=["flex", "nan", "text", "several signatures", "lambda", "truncated"],
)
def test_what_cannot_be_converted_is_refused_by_type(make: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SqueezeflowError) as caught:
        converted(make(tmp_path), tmp_path / "work")
    assert caught.value.reason == reason


# Export


def exported(model: Path, workdir: Path, format: int, **options: Any) -> StepOutputs:
    return export.run(technique_pb2.Export(format=format), step(model, workdir, **options), Told())


SAVED_MODEL, KERAS = technique_pb2.Export.FORMAT_SAVED_MODEL, technique_pb2.Export.FORMAT_KERAS


@pytest.mark.parametrize("make", [models.two_inputs_file, models.keras3_two_outputs])
def test_a_keras_model_is_exported_as_a_saved_model_under_its_own_names(make: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    model = make(tmp_path)
    outputs = exported(model, tmp_path / "work", SAVED_MODEL)
    assert outputs.artifact is not None
    assert outputs.artifact.kind == artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
    assert outputs.metrics["max_abs_diff"].value < 1e-6
    signature = tf.saved_model.load(str(outputs.artifact.path)).signatures["serving_default"]
    assert set(signature.structured_input_signature[1]) == {"zeta", "alpha"}
    zeta, alpha = np.ones((2, 6), np.float32), np.zeros((2, 6), np.float32)
    expected = open_source(ArtifactPath(KINDS[model.suffix], model)).predict({"zeta": zeta, "alpha": alpha})
    found = signature(zeta=tf.constant(zeta), alpha=tf.constant(alpha))
    np.testing.assert_allclose(found["first"], expected["first"], atol=1e-6)
    np.testing.assert_allclose(found["second"], expected["second"], atol=1e-6)


def test_an_exported_saved_model_converts_like_its_source(tmp_path: Path) -> None:
    outputs = exported(models.tf_keras_file(tmp_path), tmp_path / "work", SAVED_MODEL)
    assert outputs.artifact is not None
    again = converted(outputs.artifact.path, tmp_path / "again")
    assert again.contract is not None
    assert names(again.contract.outputs) == ["probabilities"]


def test_one_signature_of_a_saved_model_is_exported(tmp_path: Path) -> None:
    outputs = exported(models.two_signatures(tmp_path), tmp_path / "work", SAVED_MODEL, signature="scale")
    assert outputs.contract is not None
    assert names(outputs.contract.outputs) == ["scaled"]
    assert outputs.contract.signature == "serving_default"


def test_hdf5_becomes_a_keras_file_that_remembers_how_it_was_compiled(tmp_path: Path) -> None:
    model = models.tf_keras_file(tmp_path, name="model.h5", compiled=True)
    outputs = exported(model, tmp_path / "work", KERAS)
    assert outputs.artifact is not None
    assert outputs.artifact.kind == artifact_pb2.ARTIFACT_KIND_KERAS
    source = open_source(outputs.artifact)
    assert source.keras is not None
    assert source.compile_config.loss == "sparse_categorical_crossentropy"


def test_a_keras_3_model_stays_keras_3(tmp_path: Path) -> None:
    outputs = exported(models.keras3_file(tmp_path, name="model.h5"), tmp_path / "work", KERAS)
    assert outputs.artifact is not None
    assert open_source(outputs.artifact).format == "Keras 3 .keras"


def test_a_saved_model_cannot_become_a_keras_file(tmp_path: Path) -> None:
    with pytest.raises(SqueezeflowError) as caught:
        exported(models.two_signatures(tmp_path), tmp_path / "work", KERAS, signature="scale")
    assert caught.value.reason == "UNSUPPORTED_INPUT"


@pytest.mark.parametrize("format", [SAVED_MODEL, KERAS], ids=["saved_model", "keras"])
def test_a_pruned_model_keeps_its_zeros_in_every_format(format: int, tmp_path: Path) -> None:
    model = pruned_file(tmp_path)
    outputs = exported(model, tmp_path / "work", format)
    assert outputs.artifact is not None
    before = open_source(ArtifactPath(KINDS[model.suffix], model)).kernels().values()
    after = open_source(outputs.artifact).kernels().values()
    zeros = sorted(int((kernel == 0).sum()) for kernel in before if kernel.ndim > 1)
    assert zeros[-1] > 5000
    assert sorted(int((kernel == 0).sum()) for kernel in after if kernel.ndim > 1)[-len(zeros) :] == zeros
