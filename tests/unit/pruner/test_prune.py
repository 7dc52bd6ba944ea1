"""Pruning of real models: zeros in the saved file, layers that are left alone, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants import crowded_groups, needed_zeros, zero_blocks
from squeezeflow.core.step import ArtifactPath, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import pruned
from squeezeflow.modelkit.source import open_source
from squeezeflow.pruner import prune
from squeezeflow.pruner.summaries import POINTS
from squeezeflow.v1 import artifact_pb2, technique_pb2

KINDS = {
    ".keras": artifact_pb2.ARTIFACT_KIND_KERAS,
    ".h5": artifact_pb2.ARTIFACT_KIND_HDF5,
    "": artifact_pb2.ARTIFACT_KIND_SAVED_MODEL,
    ".tflite": artifact_pb2.ARTIFACT_KIND_TFLITE,
}
Run = Callable[..., StepOutputs]
Prune = technique_pb2.Prune


def prune_file(
    folder: Path, model: Path, arrays: dict[str, np.ndarray] | None, *, told: list[Any] | None = None, **params: Any
) -> StepOutputs:
    """Prunes a model file on given arrays, one epoch unless told otherwise."""
    artifacts = {"model": ArtifactPath(KINDS[model.suffix], model)}
    if arrays is not None:
        np.savez(folder / "data.npz", **arrays)
        artifacts["data"] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, folder / "data.npz")
    workdir = folder / f"work-{len(list(folder.glob('work-*')))}"
    workdir.mkdir()
    fine_tune = technique_pb2.FineTune(**{"epochs": 1, **params.pop("fine_tune", {})})

    def report(fraction: float, stage: str, **details: Any) -> None:
        if told is not None:
            told.append((fraction, stage, details))

    request = technique_pb2.Prune(fine_tune=fine_tune, **params)
    return prune.run(request, StepInputs(artifacts=artifacts, workdir=workdir), report)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(prune_file, tmp_path)


@dataclass(frozen=True)
class Pruned:
    """A CNN that was pruned once for several tests."""

    source: Path
    outputs: StepOutputs
    told: list[Any]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    folder, told = tmp_path_factory.mktemp("cnn"), []
    source = models.tf_keras_file(folder, compiled=True)
    return Pruned(source, prune_file(folder, source, images(), told=told, sparsity=0.8), told)


def images(count: int = 96) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.random((count, 28, 28, 1), np.float32),
        "y_train": rng.integers(0, 10, count),
        "classes": np.array([f"label {index}" for index in range(10)]),
    }


def vectors(count: int = 96) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 8)).astype(np.float32)
    return {"x_train": x, "y_train": (x[:, 0] > 0).astype(np.int64)}


def save(folder: Path, *layers: Any, **inputs: Any) -> Path:
    """Writes a tf_keras stack of layers on 8 numbers."""
    import tf_keras

    tf_keras.utils.set_random_seed(1)
    first = tf_keras.Input(**{"shape": (8,), "name": "x", **inputs})
    return models.save(tf_keras.Sequential([first, *layers]), folder / "model.keras")


def classifier() -> Any:
    import tf_keras

    return tf_keras.layers.Dense(2, activation="softmax", name="label")


def load(outputs: StepOutputs) -> Any:
    import tf_keras

    assert outputs.artifact is not None
    return tf_keras.models.load_model(str(outputs.artifact.path))


def test_the_saved_file_has_the_promised_zeros_and_is_the_same_model_without_wrappers(cnn: Pruned) -> None:
    import tf_keras

    outputs = cnn.outputs
    original, pruned = tf_keras.models.load_model(str(cnn.source)), load(outputs)
    assert [layer.name for layer in pruned.layers] == [layer.name for layer in original.layers]
    assert [type(layer) for layer in pruned.layers] == [type(layer) for layer in original.layers]
    for layer in ("conv", "conv_2", "dense", "probabilities"):
        kernel = pruned.get_layer(layer).kernel.numpy()
        assert np.count_nonzero(kernel == 0) == needed_zeros(kernel.size, 0.8)
        assert not np.signbit(kernel[kernel == 0]).any(), "a negative zero costs a bit that deflate cannot remove"
    assert np.count_nonzero(pruned.get_layer("depthwise").depthwise_kernel.numpy() == 0) == 0
    assert [(i.name, i.passed) for i in outputs.invariants] == [
        ("finite", True),
        ("alive", True),
        ("close", True),
        ("sparsity", True),
    ]
    by_layer = {outcome.layer: outcome for outcome in outputs.layers}
    assert list(by_layer) == [layer.name for layer in original.layers]
    assert by_layer["dense"].detail == "sparsity 0.800"
    assert by_layer["dense"].applied
    assert not by_layer["depthwise"].applied
    assert "depthwise" in by_layer["depthwise"].detail
    assert any("deflated, the model shrinks from" in note for note in outputs.notes)


def test_progress_goes_from_loading_over_training_to_proving(cnn: Pruned) -> None:
    fractions = [fraction for fraction, _, _ in cnn.told]
    assert fractions == sorted(fractions)
    assert list(dict.fromkeys(stage for _, stage, _ in cnn.told)) == ["loading", "training", "proving"]


def test_a_later_step_finds_loss_labels_and_samples(cnn: Pruned) -> None:
    outputs = cnn.outputs
    assert outputs.artifact is not None
    assert outputs.contract is not None
    again = open_source(outputs.artifact)
    assert again.compile_config.loss == "sparse_categorical_crossentropy"
    assert again.compile_config.learning_rate == pytest.approx(0.002)
    assert [tensor.name for tensor in outputs.contract.inputs] == ["image"]
    assert outputs.contract.labels[3] == "label 3"
    golden = outputs.contract.golden_samples[0]
    assert list(golden.outputs["probabilities"].shape) == [1, 10]


@pytest.mark.parametrize("batch_size", [96, 48], ids=["one step", "two steps"])
def test_the_sparsity_is_reached_however_few_steps_there_are(tmp_path: Path, run: Run, batch_size: int) -> None:
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(20, activation="relu", name="dense"), classifier())
    pruned = load(run(source, vectors(), sparsity=0.5, fine_tune={"batch_size": batch_size}))
    kernel = pruned.get_layer("dense").kernel.numpy()
    assert np.count_nonzero(kernel == 0) == needed_zeros(160, 0.5)


def test_sparsities_that_float32_cannot_hold_are_reached_too(tmp_path: Path, run: Run) -> None:
    import tf_keras

    # 25 · (1 − 0.9) rounds to 3 in float32 and to 2 exactly: TFMOT alone would leave one weight too many.
    square = tf_keras.layers.Dense(5, name="square")
    source = save(tmp_path, tf_keras.layers.Dense(5), square, classifier())
    pruned = load(run(source, vectors(), sparsity=0.9))
    assert np.count_nonzero(pruned.get_layer("square").kernel.numpy() == 0) == needed_zeros(25, 0.9) == 23


def test_inner_layers_of_nested_models_are_pruned_and_frozen_ones_keep_every_weight(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    backbone = tf_keras.Sequential([tf_keras.Input((8,)), layers.Dense(16, name="inner")], name="backbone")
    frozen = layers.Dense(12, name="frozen", trainable=False)
    norm = layers.BatchNormalization(name="norm", trainable=False)
    source = save(tmp_path, backbone, frozen, norm, classifier())
    before = tf_keras.models.load_model(str(source))
    outputs = run(source, vectors(), sparsity=0.75)
    after = load(outputs)
    inner = after.get_layer("backbone").get_layer("inner").kernel.numpy()
    assert np.count_nonzero(inner == 0) == needed_zeros(128, 0.75)
    for name in ("frozen", "norm"):
        assert not after.get_layer(name).trainable
        for old, new in zip(before.get_layer(name).get_weights(), after.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    by_layer = {outcome.layer: outcome for outcome in outputs.layers}
    assert by_layer["backbone/inner"].detail == "sparsity 0.750"
    assert by_layer["frozen"].detail.startswith("frozen (trainable is false)")


def test_layers_without_a_kernel_are_left_alone_by_name(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    source = save(
        tmp_path,
        layers.Rescaling(2.0, name="rescale"),
        layers.Reshape((4, 2)),
        layers.TimeDistributed(layers.BatchNormalization(name="norm"), name="steps"),
        layers.LSTM(6, name="lstm"),
        layers.Dense(1, name="narrow"),
        classifier(),
    )
    outputs = run(source, vectors(), sparsity=0.8)
    by_layer = {outcome.layer: outcome for outcome in outputs.layers}
    assert not by_layer["rescale"].applied
    assert by_layer["steps/norm"].detail == "has no kernel that TFMOT prunes (BatchNormalization)"
    assert by_layer["label"].detail == "too few weights (2) to leave any at sparsity 0.8"
    cell = load(outputs).get_layer("lstm").cell
    for kernel in (cell.kernel.numpy(), cell.recurrent_kernel.numpy()):
        assert np.count_nonzero(kernel == 0) == needed_zeros(kernel.size, 0.8)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, run: Run) -> None:
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(8), tf_keras.layers.Dropout(0.5), classifier())
    files = [run(source, vectors(), fine_tune={"seed": seed}).artifact.path.read_bytes() for seed in (1, 1, 2)]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_training_recovers_what_pruning_takes(tmp_path: Path, run: Run) -> None:
    import tf_keras

    data = vectors(600)
    source = save(tmp_path, tf_keras.layers.Dense(32, activation="relu"), classifier())
    pruned = load(run(source, data, fine_tune={"epochs": 10, "learning_rate": 0.01}))
    predicted = pruned.predict(data["x_train"], verbose=0).argmax(axis=-1)
    assert np.mean(predicted == data["y_train"]) > 0.9


def test_an_initial_sparsity_above_the_target_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(SqueezeflowError, match="lower initial_sparsity") as refusal:
        run(models.tf_keras_file(tmp_path), images(), sparsity=0.5, initial_sparsity=0.6)
    assert refusal.value.reason == "INVALID_PARAMETER"
    assert refusal.value.fields[0][0] == "params.initial_sparsity"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a model with kernels of 2, 3 and 4 axes, input axes that are no multiple of 4, and a transposed one."""
    import tf_keras

    layers = tf_keras.layers
    return save(
        tmp_path_factory.mktemp("mixed"),
        layers.Dense(30, name="wide"),
        layers.Reshape((5, 6)),
        layers.Conv1D(6, 2, name="line"),
        layers.Reshape((4, 6, 1)),
        layers.Conv2D(6, 2, name="gray"),
        layers.Conv2D(8, 2, name="image"),
        layers.Conv2DTranspose(4, 2, name="up"),
        layers.Flatten(),
        classifier(),
    )


def details(outputs: StepOutputs) -> dict[str, str]:
    return {outcome.layer: outcome.detail for outcome in outputs.layers}


def test_m_of_n_holds_along_the_input_axis_and_is_kept_by_the_converter(tmp_path: Path, run: Run, mixed: Path) -> None:
    outputs = run(mixed, vectors(), m_by_n=Prune.MByN(m=2, n=4))
    model = load(outputs)
    for name in ("wide", "image", "label"):
        assert crowded_groups(model.get_layer(name).kernel.numpy(), 2, 4, -2)[0] == 0
    found = details(outputs)
    # Six inputs are a group of four and one of two, which keeps both.
    assert found["image"] == "sparsity 0.333, 2 of 4 along the input axis"
    assert found["wide"] == "sparsity 0.500, 2 of 4 along the input axis"
    assert found["gray"] == "its input axis has 1 weights, no more than the 2 of 4 that stay"
    assert found["line"] == "m of n is for kernels with 2 or 4 axes, its kernel has 3"
    assert found["up"].startswith("m of n: TFMOT counts along the outputs")
    assert "label 2 of 4 in all of" in outputs.invariants[-1].detail

    assert outputs.artifact is not None
    source = open_source(outputs.artifact)
    (tmp_path / "model.tflite").write_bytes(source.converter().convert())
    (kept,) = pruned.sparsity_kept(source, TfliteFile.read(tmp_path / "model.tflite"))
    assert kept.passed
    assert "wide 120 of 240 zeros" in kept.detail
    assert "gray" not in kept.detail, "a layer that was left out has no zeros to keep"


@pytest.mark.parametrize("pooling", [Prune.BLOCK_POOLING_AVERAGE, Prune.BLOCK_POOLING_MAXIMUM])
def test_blocks_of_dense_kernels_are_pruned_as_a_whole(run: Run, mixed: Path, pooling: int) -> None:
    outputs = run(mixed, vectors(), sparsity=0.75, block_height=3, block_width=4, block_pooling=pooling)
    # 8 × 30 in blocks of 3 × 4: those at the edges are smaller.
    zeros, blocks = zero_blocks(load(outputs).get_layer("wide").kernel.numpy(), 3, 4)
    assert (zeros, blocks) == (needed_zeros(24, 0.75), 24)
    found = details(outputs)
    assert found["wide"].endswith("in blocks of 3 × 4")
    assert found["image"] == "blocks are for matrices, its kernel has 4 axes"
    assert "fit only once along an axis of its kernel (60 × 2), where TFMOT fails" in found["label"]
    assert "wide 18 of 24 blocks" in outputs.invariants[-1].detail


def test_layers_are_chosen_by_name_and_have_sparsities_of_their_own(run: Run, mixed: Path) -> None:
    outputs = run(
        mixed,
        vectors(),
        sparsity=0.9,
        layers=technique_pb2.LayerSelection(include=["wide", "i*", "up"], exclude=["up"]),
        layer_sparsities=[
            Prune.LayerSparsity(pattern="*", sparsity=0.5),
            Prune.LayerSparsity(pattern="im*", sparsity=0.25),
        ],
    )
    found = details(outputs)
    assert found["wide"] == "sparsity 0.500"
    assert found["image"] == "sparsity 0.250"
    assert found["up"] == "left out by the request: layers.exclude names up"
    assert found["label"].startswith("left out by the request: layers.include names")
    assert np.count_nonzero(load(outputs).get_layer("label").kernel.numpy() == 0) == 0


@pytest.mark.parametrize(
    ("schedule", "first", "growing"),
    [(Prune.SCHEDULE_CONSTANT, 0.8, False), (Prune.SCHEDULE_POLYNOMIAL, 0.0, True)],
    ids=["constant", "polynomial"],
)
def test_summaries_hold_the_sparsity_of_every_kernel_by_step(
    tmp_path: Path, run: Run, schedule: int, first: float, growing: bool
) -> None:
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(40, name="dense"), tf_keras.layers.Dense(2, name="label"))
    outputs = run(
        source,
        vectors(),
        schedule=schedule,
        summaries=True,
        fine_tune={"epochs": 3, "batch_size": 1, "from_logits": True},
    )
    assert outputs.logs is not None
    assert [path.name for path in outputs.logs.iterdir()] == ["events.out.tfevents.0"]
    found = events(outputs.logs / "events.out.tfevents.0")
    assert {tag.split("/")[0] for tag in found} == {"prune_low_magnitude_dense", "prune_low_magnitude_label"}
    steps = found["prune_low_magnitude_dense/mask:0/sparsity"]
    assert list(steps) == sorted(steps)
    assert max(steps) == 3 * 96, "the last step is there"
    assert POINTS < len(steps) <= 2 * POINTS + 1
    shares = list(steps.values())
    assert shares[-1] == pytest.approx(0.8)
    assert (shares[0] < 0.3) == growing
    assert shares[0] >= first - 1e-6


def events(path: Path) -> dict[str, dict[int, float]]:
    """Reads an event file: values by tag and step."""
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    found: dict[str, dict[int, float]] = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = event_pb2.Event.FromString(record.numpy())
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_early_stopping_waits_until_the_sparsity_is_there(tmp_path: Path, run: Run) -> None:
    import tf_keras

    source = save(tmp_path, tf_keras.layers.Dense(20, name="dense"), classifier())
    data = vectors()
    # Labels of the validation samples are wrong: no epoch improves on the first.
    validation = {"x_validation": data["x_train"], "y_validation": 1 - data["y_train"]}
    fine_tune = {"epochs": 10, "patience": 1, "learning_rate": 0.05}
    outputs = run(source, {**data, **validation}, ramp=0.6, fine_tune=fine_tune)
    assert any("early stopping: stopped after epoch 7 of 10" in note for note in outputs.notes)
    assert details(outputs)["dense"] == "sparsity 0.800"


@pytest.mark.parametrize(
    ("params", "field", "says"),
    [
        ({"m_by_n": Prune.MByN(m=4, n=4)}, "m_by_n.m", "lower m"),
        ({"m_by_n": Prune.MByN(), "block_width": 2}, "m_by_n", "two patterns"),
        (
            {"m_by_n": Prune.MByN(), "layer_sparsities": [Prune.LayerSparsity(pattern="*", sparsity=0.5)]},
            "layer_sparsities",
            "leave out one",
        ),
        ({"one_shot": True, "summaries": True}, "summaries", "does not train"),
        (
            {"initial_sparsity": 0.5, "layer_sparsities": [Prune.LayerSparsity(pattern="dense", sparsity=0.4)]},
            "initial_sparsity",
            "above sparsity for dense 0.4",
        ),
        ({"layers": technique_pb2.LayerSelection(exclude=["absent*"])}, "layers.exclude", "choose from wide"),
        ({"layer_sparsities": [Prune.LayerSparsity(pattern="absent", sparsity=0.4)]}, "layer_sparsities", "absent"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(
    run: Run, mixed: Path, params: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(SqueezeflowError, match=says) as refusal:
        run(mixed, vectors(), **params)
    assert refusal.value.reason == "INVALID_PARAMETER"
    assert refusal.value.fields[0][0] == f"params.{field}"


def test_a_keras_3_model_is_pruned_as_its_tf_keras_twin(tmp_path: Path, run: Run) -> None:
    outputs = run(models.keras3_file(tmp_path), images(), sparsity=0.5)
    for name in ("conv", "conv_2", "probabilities"):
        kernel = load(outputs).get_layer(name).kernel.numpy()
        assert np.count_nonzero(kernel == 0) == needed_zeros(kernel.size, 0.5)


def test_a_saved_model_cannot_be_trained(tmp_path: Path, run: Run) -> None:
    with pytest.raises(SqueezeflowError, match="without layers") as refusal:
        run(models.saved_model(tmp_path), images())
    assert refusal.value.reason == "UNSUPPORTED_INPUT"


def test_a_model_without_a_layer_to_prune_is_refused_with_the_reasons(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    source = save(tmp_path, layers.BatchNormalization(name="norm"), layers.Dense(2, name="still", trainable=False))
    with pytest.raises(SqueezeflowError, match=r"norm: .*; still: frozen") as refusal:
        run(source, vectors())
    assert refusal.value.reason == "UNSUPPORTED_LAYER"
    assert set(refusal.value.metadata) == {"norm", "still"}


def test_without_train_samples_it_is_data_missing(tmp_path: Path, run: Run) -> None:
    with pytest.raises(SqueezeflowError, match="x_train and y_train") as refusal:
        run(models.tf_keras_file(tmp_path), None)
    assert refusal.value.reason == "DATA_MISSING"
