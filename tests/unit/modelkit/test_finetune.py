"""Fine-tuning on real tf_keras models: what is resolved, that it fits, that the seed decides, and what it tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import finetune, keras_source
from squeezeflow.modelkit.keras_file import write_keras
from squeezeflow.v1 import technique_pb2

FineTune = technique_pb2.FineTune
# Two classes that a linear model tells apart.
X = np.random.default_rng(1).normal(size=(160, 4)).astype(np.float32)
IDS = (X[:, 0] > 0).astype(np.int64)


class Told(list[dict[str, Any]]):
    """A `Report` that keeps what it was told."""

    def __call__(self, fraction: float, stage: str, **details: Any) -> None:
        self.append({"fraction": fraction, "stage": stage, **details})


def source_of(*layers: Any, path: Path | None = None) -> Any:
    import tf_keras

    tf_keras.utils.set_random_seed(3)
    return keras_source.of_model(tf_keras.Sequential([tf_keras.Input((4,), name="x"), *layers]))


def dense(units: int, **options: Any) -> Any:
    import tf_keras

    return tf_keras.layers.Dense(units, name="y", **options)


def bind(folder: Path, source: Any, **arrays: np.ndarray) -> BoundData:
    np.savez(folder / "data.npz", **arrays)
    return Dataset.open(folder / "data.npz").bind(source.contract)


@pytest.mark.parametrize(
    ("layer", "labels", "loss"),
    [
        ({"units": 2, "activation": "softmax"}, IDS, "sparse_categorical_crossentropy"),
        ({"units": 2, "activation": "softmax"}, np.eye(2)[IDS], "categorical_crossentropy"),
        ({"units": 1, "activation": "sigmoid"}, IDS, "binary_crossentropy"),
        ({"units": 3, "activation": "sigmoid"}, (X[:, :3] > 0).astype(np.uint8), "binary_crossentropy"),
        ({"units": 1}, X[:, 0] * 2, "mean_squared_error"),
        ({"units": 2}, X[:, :2], "mean_squared_error"),
    ],
)
def test_the_inferred_loss_trains_the_model(
    tmp_path: Path, layer: dict[str, Any], labels: np.ndarray, loss: str
) -> None:
    source = source_of(dense(**layer))
    bound = bind(tmp_path, source, x_train=X, y_train=labels)
    training = finetune.resolve(FineTune(epochs=3, learning_rate=0.05), source, bound)
    assert [choice.loss for choice in training.losses] == [loss]
    told = Told()
    finetune.seed_everything(training)
    finetune.fit(source.keras, training, source, bound, told)
    by_epoch = {event["epoch"]: event["metrics"]["loss"] for event in told}
    assert by_epoch[3] < 0.9 * by_epoch[1]


def test_everything_is_told(tmp_path: Path) -> None:
    source = source_of(dense(2, activation="softmax"))
    bound = bind(tmp_path, source, x_train=X, y_train=IDS)
    training = finetune.resolve(FineTune(batch_size=50, seed=9), source, bound)
    assert (training.epochs, training.batch_size, training.seed) == (2, 50, 9)
    assert (training.steps_per_epoch, training.steps) == (4, 8)
    assert training.notes == (
        "fine-tuning output y with sparse_categorical_crossentropy, from_logits false "
        "(inferred from softmax output and class_ids labels)",
        "optimizer adam (default), learning_rate 0.001 (default)",
        "fine-tuning on 160 train samples: epochs 2 (default), batch_size 50, seed 9",
    )


def test_the_compile_configuration_of_the_file_is_used(tmp_path: Path) -> None:
    path = models.tf_keras_file(tmp_path, compiled=True)
    source = keras_source.open_keras(path)
    rng = np.random.default_rng(0)
    images = rng.random((20, 28, 28, 1), np.float32)
    bound = bind(tmp_path, source, x_train=images, y_train=rng.integers(0, 10, 20))
    training = finetune.resolve(FineTune(), source, bound)
    assert training.losses[0].why == "the compile configuration"
    assert training.learning_rate == pytest.approx(0.002)
    assert "learning_rate 0.002 (the compile configuration)" in training.notes[1]


def test_a_written_model_keeps_what_the_next_step_infers_from(tmp_path: Path) -> None:
    logits = source_of(dense(2))
    compiled = keras_source.compile_config.CompileConfig("sparse_categorical_crossentropy", True, "sgd", 0.5)
    for name in ("first.keras", "again.keras"):
        write_keras(logits.keras, tmp_path / name, compiled)
    assert keras_source.open_keras(tmp_path / "first.keras").compile_config == compiled
    assert (tmp_path / "first.keras").read_bytes() == (tmp_path / "again.keras").read_bytes()


def test_linear_class_outputs_are_refused_until_logits_are_told(tmp_path: Path) -> None:
    source = source_of(dense(2))
    bound = bind(tmp_path, source, x_train=X, y_train=IDS)
    with pytest.raises(SqueezeflowError, match=r"fine_tune\.from_logits") as refusal:
        finetune.resolve(FineTune(), source, bound)
    assert refusal.value.reason == "INVALID_PARAMETER"
    training = finetune.resolve(FineTune(from_logits=True), source, bound)
    assert training.losses[0].from_logits


@pytest.mark.parametrize("arrays", [{}, {"x_train": X}, {"x_test": X, "y_test": IDS}], ids=["none", "no y", "test"])
def test_fitting_without_train_samples_is_data_missing(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    source = source_of(dense(2, activation="softmax"))
    bound = bind(tmp_path, source, **arrays) if arrays else None
    with pytest.raises(SqueezeflowError, match="y_train") as refusal:
        finetune.resolve(FineTune(), source, bound)
    assert refusal.value.reason == "DATA_MISSING"


def test_a_model_with_a_fixed_batch_is_fitted_in_whole_batches(tmp_path: Path) -> None:
    source = keras_source.open_keras(models.recurrent_file(tmp_path, cell="SimpleRNN", batch=3))
    x = np.random.default_rng(0).normal(size=(10, 12, 3)).astype(np.float32)
    arrays = {"sequence_train": x, "y_train": np.arange(10) % 4, "x_validation": x[:4], "y_validation": np.arange(4)}
    bound = bind(tmp_path, source, **arrays)
    training = finetune.resolve(FineTune(), source, bound)
    assert (training.batch_size, training.steps_per_epoch) == (3, 3)
    assert "the model takes batches of 3 only: each epoch leaves out 1 samples" in training.notes
    told = Told()
    finetune.fit(source.keras, training, source, bound, told)
    assert told[-1]["fraction"] == pytest.approx(1.0)
    with pytest.raises(SqueezeflowError, match="batches of 3"):
        finetune.resolve(FineTune(batch_size=4), source, bound)
    few = bind(tmp_path, source, x_train=x[:2], y_train=np.arange(2))
    with pytest.raises(SqueezeflowError, match="add samples") as refusal:
        finetune.resolve(FineTune(), source, few)
    assert refusal.value.reason == "DATA_MISSING"


def test_the_seed_decides_every_weight(tmp_path: Path) -> None:
    import tf_keras

    def weights(seed: int) -> bytes:
        source = source_of(tf_keras.layers.Dense(8, activation="relu"), tf_keras.layers.Dropout(0.5), dense(1))
        bound = bind(tmp_path, source, x_train=X, y_train=X[:, 0])
        training = finetune.resolve(FineTune(seed=seed), source, bound)
        finetune.seed_everything(training)
        finetune.fit(source.keras, training, source, bound, Told())
        return b"".join(array.tobytes() for array in source.keras.get_weights())

    first = weights(4)
    assert weights(4) == first
    assert weights(5) != first


def test_progress_runs_over_its_span_with_epoch_figures_and_validation(tmp_path: Path) -> None:
    source = source_of(dense(2, activation="softmax"))
    bound = bind(tmp_path, source, x_train=X, y_train=IDS, x_validation=X[:20], y_validation=IDS[:20])
    training = finetune.resolve(FineTune(epochs=3), source, bound)
    told = Told()
    notes = finetune.fit(source.keras, training, source, bound, told, span=(0.2, 0.8))
    fractions = [event["fraction"] for event in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(0.8)
    assert {event["stage"] for event in told} == {"training"}
    assert told[-1]["epoch"] == 3
    assert set(told[-1]["metrics"]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert told[-1]["eta_seconds"] == 0
    assert notes[0].startswith("training figures, first → last of 3 epochs: loss ")


def test_several_outputs_are_fitted_each_with_its_loss(tmp_path: Path) -> None:
    source = keras_source.open_keras(models.two_inputs_file(tmp_path))
    rng = np.random.default_rng(0)
    zeta, alpha = (rng.normal(size=(64, 6)).astype(np.float32) for _ in range(2))
    arrays = {"zeta_train": zeta, "alpha_train": alpha, "y.first_train": alpha[:, :4]}
    bound = bind(tmp_path, source, **arrays)
    training = finetune.resolve(FineTune(epochs=4, learning_rate=0.05), source, bound)
    assert "outputs without labels are not fitted: second" in training.notes
    before = source.keras.get_layer("second").get_weights()
    finetune.fit(source.keras, training, source, bound, Told())
    np.testing.assert_array_equal(source.keras.get_layer("second").get_weights()[0], before[0])
    bound = bind(tmp_path, source, **arrays, **{"y.second_train": rng.integers(0, 4, 64)})
    with pytest.raises(SqueezeflowError, match="second"):
        finetune.resolve(FineTune(), source, bound)
    training = finetune.resolve(FineTune(from_logits=True, epochs=4), source, bound)
    assert [choice.loss for choice in training.losses] == ["sparse_categorical_crossentropy", "mean_squared_error"]
    told = Told()
    finetune.fit(source.keras, training, source, bound, told)
    assert {"loss", "first_loss", "second_loss", "first_mae", "second_accuracy"} == set(told[-1]["metrics"])


def test_a_diverging_fit_ends_with_the_epoch_and_what_to_change(tmp_path: Path) -> None:
    source = source_of(dense(1))
    bound = bind(tmp_path, source, x_train=X * 1e18, y_train=X[:, 0])
    training = finetune.resolve(FineTune(optimizer="sgd", learning_rate=10, epochs=5), source, bound)
    with pytest.raises(SqueezeflowError, match=r"in epoch \d of 5: lower fine_tune\.learning_rate") as refusal:
        finetune.fit(source.keras, training, source, bound, Told())
    assert refusal.value.reason == "NON_FINITE_OUTPUT"
