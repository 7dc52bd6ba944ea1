"""Pruning at once: Keras models and SavedModels, without data and without training."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models
from tests.unit.pruner.test_prune import Prune, Run, classifier, details, load, prune_file, save, vectors

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants import crowded_groups, needed_zeros
from squeezeflow.core.step import ArtifactPath, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import pruned, saved_kernels
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.pruner import other_signatures, prune, saved_model
from squeezeflow.v1 import artifact_pb2, technique_pb2

SAVED_MODEL = artifact_pb2.ARTIFACT_KIND_SAVED_MODEL


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(prune_file, tmp_path, one_shot=True)


def opened(path: Path, signature: str = "") -> Source:
    return open_source(ArtifactPath(SAVED_MODEL, path), signature)


def kernels_of(outputs: StepOutputs, signature: str = "") -> dict[str, np.ndarray]:
    assert outputs.artifact is not None
    source = opened(outputs.artifact.path, signature)
    return {variable.name: variable.values for variable in saved_kernels.variables(source)}


@pytest.fixture(scope="module")
def matrices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a SavedModel, not of Keras: `first` takes x · A and x · B transposed, `second` x · C, `shared` x · A."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    state = {name: tf.Variable(rng.normal(size=shape).astype(np.float32), name=name) for name, shape in SHAPES.items()}

    @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])
    def first(x: Any) -> Any:
        return {"y": tf.matmul(x, state["a"]) + tf.matmul(x, state["b"], transpose_b=True) + state["offset"][0]}

    @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])
    def second(x: Any) -> Any:
        return {"z": tf.matmul(x, state["c"])}

    @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])
    def shared(x: Any) -> Any:
        return {"z": tf.matmul(x, state["a"]) + tf.matmul(x, state["c"])}

    @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])
    def timed(x: Any) -> Any:
        return {"z": tf.matmul(x, state["a"]) + tf.cast(1e6 * (tf.timestamp() % 1), tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="text")])
    def words(text: Any) -> Any:
        return {"lengths": tf.strings.length(text)}

    signatures = {"first": first, "second": second, "shared": shared, "timed": timed, "words": words}
    return models._function_model(tmp_path_factory.mktemp("m") / "model", signatures, **state)


SHAPES = {"a": (8, 6), "b": (6, 8), "c": (8, 6), "offset": (2, 6)}


def prune_signature(folder: Path, model: Path, signature: str, **params: Any) -> StepOutputs:
    workdir = folder / "work"
    workdir.mkdir()
    inputs = StepInputs(artifacts={"model": ArtifactPath(SAVED_MODEL, model)}, workdir=workdir, signature=signature)
    return prune.run(Prune(one_shot=True, **params), inputs, lambda *_, **__: None)


def test_a_keras_model_loses_its_smallest_weights_and_keeps_the_others_bit_for_bit(tmp_path: Path, run: Run) -> None:
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(20, name="dense"), classifier())
    before, outputs = tf_keras.models.load_model(str(source)), run(source, None, sparsity=0.7)
    after = load(outputs)
    old, new = before.get_layer("dense").kernel.numpy(), after.get_layer("dense").kernel.numpy()
    assert np.count_nonzero(new == 0) == needed_zeros(old.size, 0.7)
    np.testing.assert_array_equal(new[new != 0], old[new != 0])
    assert np.abs(old[new == 0]).max() < np.abs(new[new != 0]).min()
    assert [invariant.name for invariant in outputs.invariants] == ["finite", "alive", "close", "sparsity"]
    assert any("without training, the outputs moved by" in note for note in outputs.notes)
    assert 0 < outputs.metrics["sqnr_db"].value < 60


@pytest.mark.parametrize(
    "params",
    [
        {"sparsity": 0.7},
        {"m_by_n": Prune.MByN(m=1, n=4)},
        {"m_by_n": Prune.MByN(m=3, n=5)},
        # Where blocks do not fill an axis by more than one, TFMOT's pooling begins before it, its masks do not.
        {"sparsity": 0.6, "block_height": 3, "block_width": 6},
        {"sparsity": 0.6, "block_height": 1, "block_width": 7, "block_pooling": Prune.BLOCK_POOLING_MAXIMUM},
    ],
    ids=["weights", "1 of 4", "3 of 5", "mean of blocks", "largest of blocks"],
)
def test_it_prunes_the_weights_that_tfmot_prunes(tmp_path: Path, run: Run, params: dict[str, Any]) -> None:
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(18, name="dense"), tf_keras.layers.Reshape((1, 1, 18)), *_head())
    at_once = load(run(source, None, **params))
    # One step that trains nothing: what differs from the source are TFMOT's masks alone.
    still = {"optimizer": "sgd", "learning_rate": 1e-30, "batch_size": 96}
    masked = load(run(source, vectors(), one_shot=False, schedule=Prune.SCHEDULE_CONSTANT, fine_tune=still, **params))
    for name in ("dense", "image"):
        np.testing.assert_array_equal(at_once.get_layer(name).kernel.numpy(), masked.get_layer(name).kernel.numpy())
    assert np.count_nonzero(at_once.get_layer("dense").kernel.numpy() == 0) > 18


def _head() -> list[Any]:
    import tf_keras

    return [tf_keras.layers.Conv2D(6, 1, name="image"), tf_keras.layers.Flatten(), classifier()]


def test_a_saved_model_stays_one_and_its_tflite_file_holds_the_zeros(tmp_path: Path, run: Run) -> None:
    path = models.saved_model(tmp_path)
    source, outputs = opened(path, "serving_default"), run(path, None, sparsity=0.75)
    old = {variable.name: variable.values for variable in saved_kernels.variables(source)}
    new = kernels_of(outputs)
    for name in ("conv/kernel", "conv_2/kernel", "dense/kernel", "probabilities/kernel"):
        assert np.count_nonzero(new[name] == 0) == needed_zeros(new[name].size, 0.75)
        np.testing.assert_array_equal(new[name][new[name] != 0], old[name][new[name] != 0])
    np.testing.assert_array_equal(new["depthwise/depthwise_kernel"], old["depthwise/depthwise_kernel"])
    assert "depthwise" in details(outputs)["depthwise/depthwise_kernel"]
    assert [invariant.name for invariant in outputs.invariants] == ["finite", "alive", "close", "sparsity"]

    assert outputs.artifact is not None
    again = opened(outputs.artifact.path)
    (tmp_path / "model.tflite").write_bytes(again.converter().convert())
    (kept,) = pruned.sparsity_kept(again, TfliteFile.read(tmp_path / "model.tflite"))
    assert kept.passed, kept.detail
    assert "dense/kernel 9600 of 12800 zeros" in kept.detail


def test_only_kernels_of_the_chosen_signature_are_pruned_and_every_signature_stays(
    tmp_path: Path, matrices: Path
) -> None:
    import tensorflow as tf

    outputs = prune_signature(tmp_path, matrices, "first", sparsity=0.5)
    found = kernels_of(outputs, "first")
    assert {name: np.count_nonzero(values == 0) for name, values in found.items()} == {"a": 24, "b": 24, "offset": 0}
    assert details(outputs)["offset"].startswith("no matrix product or convolution takes it")
    assert outputs.artifact is not None
    before, after = tf.saved_model.load(str(matrices)), tf.saved_model.load(str(outputs.artifact.path))
    assert set(after.signatures) == set(before.signatures)
    x = tf.constant(np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32))
    c = before.signatures["second"](x=x)["z"]
    assert np.array_equal(after.signatures["second"](x=x)["z"], c)
    # The shared kernel is the pruned one, the other as it was.
    np.testing.assert_allclose(after.signatures["shared"](x=x)["z"], x @ found["a"] + c, atol=1e-5)
    assert not np.allclose(after.signatures["shared"](x=x)["z"], before.signatures["shared"](x=x)["z"], atol=1e-2)
    assert after.signatures["words"](text=tf.constant(["abc"]))["lengths"].numpy().tolist() == [3]


def test_signatures_that_cannot_be_compared_are_named(tmp_path: Path, matrices: Path) -> None:
    notes = "\n".join(prune_signature(tmp_path, matrices, "first", sparsity=0.5).notes)
    assert "signatures second, shared, timed, words are kept" in notes
    # Tests before this one may have asked for deterministic operations, which refuse to tell the time.
    assert re.search("timed was written and not compared: it (gives something else at every call|does not take)", notes)
    assert "words was written and not compared: tensor text is text" in notes
    assert "second was" not in notes
    assert "shared was" not in notes


def test_a_signature_that_computes_something_else_is_refused_by_name(tmp_path: Path, matrices: Path) -> None:
    source = opened(matrices, "first")
    old = {variable.name: variable.values for variable in saved_kernels.variables(source)}
    written = saved_model.write_with(source, {"a": old["a"] * 2}, tmp_path / "written")
    assert other_signatures.prove(source, written.path, {"a": old["a"] * 2})
    with pytest.raises(SqueezeflowError) as caught:
        other_signatures.prove(source, written.path, {"a": old["a"] * 3})
    assert caught.value.reason == "INVARIANT_BROKEN"
    assert "signature shared computes something else" in caught.value.message


def test_m_of_n_follows_the_axis_that_a_product_sums_over(tmp_path: Path, matrices: Path) -> None:
    outputs = prune_signature(tmp_path, matrices, "first", m_by_n=Prune.MByN(m=2, n=4))
    found = kernels_of(outputs, "first")
    assert crowded_groups(found["a"], 2, 4, 0)[0] == 0
    assert crowded_groups(found["b"], 2, 4, 1)[0] == 0
    assert crowded_groups(found["b"], 2, 4, 0)[0] > 0


def test_variables_are_chosen_by_name(tmp_path: Path, matrices: Path) -> None:
    outputs = prune_signature(tmp_path, matrices, "first", layers=technique_pb2.LayerSelection(exclude=["a"]))
    found = kernels_of(outputs, "first")
    assert np.count_nonzero(found["a"] == 0) == 0
    assert np.count_nonzero(found["b"] == 0) == needed_zeros(48, 0.8)
    assert details(outputs)["a"] == "left out by the request: layers.exclude names a"


def test_writing_a_saved_model_again_changes_nothing_else_and_always_gives_the_same_bytes(
    tmp_path: Path, matrices: Path
) -> None:
    source = opened(matrices, "second")
    values = {"c": np.zeros(SHAPES["c"], np.float32)}
    folders = [saved_model.write_with(source, values, tmp_path / name).path for name in ("one", "two")]
    files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*") if path.is_file())
    assert [str(path) for path in files if path.parts[0] != "variables"] == ["saved_model.pb"]
    for file in files:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    x = {"x": np.ones((2, 8), np.float32)}
    assert not opened(folders[0], "second").predict(x)["z"].any()
    assert source.predict(x)["z"].any(), "the source is as it was"
    expected = saved_model.predict_with(source, values, x)
    assert expected is not None
    assert not expected["z"].any()


def test_a_frozen_graph_is_refused(tmp_path: Path, run: Run) -> None:
    import tensorflow as tf

    kernel = tf.constant(np.ones((4, 3), np.float32))

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])
    def product(x: Any) -> Any:
        return {"y": x @ kernel}

    path = models._function_model(tmp_path / "frozen", {"serving_default": product})
    with pytest.raises(SqueezeflowError, match="constants of a frozen graph") as refusal:
        run(path.rename(tmp_path / "frozen_model"), None)
    assert refusal.value.reason == "UNSUPPORTED_LAYER"


def test_a_saved_model_of_which_nothing_is_left_is_refused_with_the_reasons(tmp_path: Path, matrices: Path) -> None:
    only = technique_pb2.LayerSelection(exclude=["b"])
    with pytest.raises(SqueezeflowError, match=r"a: too few blocks \(6\)") as refusal:
        prune_signature(tmp_path, matrices, "first", layers=only, block_height=64, sparsity=0.95)
    assert refusal.value.reason == "UNSUPPORTED_LAYER"
    assert refusal.value.metadata["b"] == "left out by the request: layers.exclude names b"


def test_a_nan_is_named_with_the_layer_in_which_it_begins(tmp_path: Path, run: Run) -> None:
    import tf_keras

    first, second = tf_keras.layers.Dense(20, name="first"), tf_keras.layers.Dense(20, name="second")
    source = save(tmp_path, first, second, classifier())
    model = tf_keras.models.load_model(str(source))
    kernel, bias = model.get_layer("second").get_weights()
    bias[3] = np.nan
    model.get_layer("second").set_weights([kernel, bias])
    model.save(str(source))
    with pytest.raises(SqueezeflowError) as caught:
        run(source, None, layers=technique_pb2.LayerSelection(include=["first"]))
    assert caught.value.reason == "NON_FINITE_OUTPUT"
    assert "layer second" in caught.value.message
