"""Early stopping: what it watches, when it ends a fit, and that it goes back to the best epoch that counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import finetune, keras_source
from squeezeflow.modelkit.early_stopping import EarlyStopping, Watch
from squeezeflow.v1 import technique_pb2

FineTune = technique_pb2.FineTune
X = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)


class Model:
    """What the callback sees of a model: weights that change with every epoch."""

    def __init__(self) -> None:
        self.weights = 0.0
        self.stop_training = False

    def get_weights(self) -> list[np.ndarray]:
        return [np.array(self.weights)]

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self.weights = float(weights[0])


def watch(losses: list[float], *, watched: Watch | None = None, **options: Any) -> tuple[Model, EarlyStopping, int]:
    """Runs the callback over losses until it stops; gives the model, the callback and the epochs done."""
    settings: dict[str, Any] = {"patience": 2, "min_delta": 0.0, "first_epoch": 1, **options}
    stopping, model = EarlyStopping(**settings, watch=watched or Watch()), Model()
    stopping.model = model
    for epoch, loss in enumerate(losses):
        model.weights = epoch + 1.0
        stopping.on_epoch_end(epoch, {"val_loss": loss})
        if model.stop_training:
            return model, stopping, epoch + 1
    return model, stopping, len(losses)


def test_it_stops_when_patience_is_at_its_end_and_restores_the_best_epoch() -> None:
    model, stopping, epochs = watch([3.0, 1.0, 2.0, 1.5, 0.5])
    note = stopping.restore(model, epoch=epochs, epochs=5)
    assert (epochs, model.weights) == (4, 2.0)
    assert note == (
        "early stopping: stopped after epoch 4 of 5: the validation loss did not improve for 2 epochs; "
        "the weights are those of epoch 2, the best one (validation loss 1)"
    )


def test_less_than_min_delta_is_no_improvement() -> None:
    model, stopping, epochs = watch([1.0, 0.95, 0.92, 0.1], min_delta=0.1)
    stopping.restore(model, epoch=epochs, epochs=4)
    assert (epochs, model.weights) == (3, 1.0)


def test_epochs_before_the_first_that_counts_neither_win_nor_use_up_patience() -> None:
    model, stopping, epochs = watch([0.1, 0.2, 0.3, 0.9, 0.8], first_epoch=4)
    note = stopping.restore(model, epoch=epochs, epochs=5)
    assert (epochs, model.weights) == (5, 5.0)
    assert "not stopped in 5 epochs" in note
    assert "epochs before 4 do not count" in note


def test_losses_that_are_no_numbers_never_win() -> None:
    model, stopping, epochs = watch([float("nan"), float("inf")])
    note = stopping.restore(model, epoch=epochs, epochs=2)
    assert (epochs, model.weights) == (2, 2.0)
    assert "no epoch has a finite validation loss" in note


def bind(folder: Path, source: Any, **arrays: np.ndarray) -> BoundData:
    np.savez(folder / "data.npz", **arrays)
    return Dataset.open(folder / "data.npz").bind(source.contract)


def linear() -> Any:
    import tf_keras

    tf_keras.utils.set_random_seed(3)
    inputs = tf_keras.Input((4,), name="x")
    return keras_source.of_model(tf_keras.Model(inputs, tf_keras.layers.Dense(1, name="y")(inputs)))


def test_a_fit_ends_early_with_the_weights_of_its_best_epoch(tmp_path: Path) -> None:
    source = linear()
    # The validation labels are those of another law: to fit train means to get worse here, after a while.
    arrays = {"x_train": X, "y_train": X[:, 0], "x_validation": X, "y_validation": X[:, 0] * 0.3}
    bound = bind(tmp_path, source, **arrays)
    training = finetune.resolve(FineTune(epochs=60, patience=2, learning_rate=0.02), source, bound)
    assert training.samples == 100
    assert training.notes[-1].endswith("patience 2, min_delta 0: it watches 100 validation samples")
    seen: list[float] = []

    def report(fraction: float, stage: str, *, metrics: dict[str, float], **more: Any) -> None:
        if "val_loss" in metrics:
            seen.append(metrics["val_loss"])

    notes = finetune.fit(source.keras, training, source, bound, report)
    assert len(seen) < 60
    assert seen[-3] == min(seen)
    assert notes[0].startswith(f"training figures, first → last of {len(seen)} epochs: ")
    assert f"stopped after epoch {len(seen)} of 60" in notes[1]
    loss = float(np.mean((source.keras.predict(X, verbose=0)[:, 0] - X[:, 0] * 0.3) ** 2))
    assert loss == pytest.approx(min(seen), rel=1e-4)


def test_without_validation_arrays_a_tenth_of_train_is_watched_and_not_trained_on(tmp_path: Path) -> None:
    source = linear()
    held_out = np.arange(100)[bind(tmp_path, source, x_train=X, y_train=X[:, 0]).fit_rows(6).validation]
    labels = X[:, 0].copy()
    labels[held_out] = 1e6  # a fit that saw one of them would not forget it
    bound = bind(tmp_path, source, x_train=X, y_train=labels)
    training = finetune.resolve(FineTune(epochs=2, patience=1, seed=6), source, bound)
    assert (training.samples, training.steps_per_epoch) == (90, 3)
    assert training.notes[-1].endswith("it watches 10 samples of train, drawn by seed 6 and not trained on")
    finetune.fit(source.keras, training, source, bound, lambda *told, **more: None)
    assert np.abs(source.keras.predict(X, verbose=0)).max() < 100


def test_too_few_samples_to_watch_are_refused(tmp_path: Path) -> None:
    source = linear()
    with pytest.raises(SqueezeflowError, match=r"add x_validation .* or leave out fine_tune\.patience") as refusal:
        finetune.resolve(FineTune(patience=1), source, bind(tmp_path, source, x_train=X[:1], y_train=X[:1, 0]))
    assert refusal.value.reason == "DATA_MISSING"
    fixed = keras_source.open_keras(models.recurrent_file(tmp_path, cell="SimpleRNN", batch=3))
    x = np.random.default_rng(0).normal(size=(20, 12, 3)).astype(np.float32)
    bound = bind(tmp_path, fixed, sequence_train=x, y_train=np.arange(20) % 4)
    with pytest.raises(SqueezeflowError, match="needs at least 3 samples to watch and there are 2"):
        finetune.resolve(FineTune(patience=1), fixed, bound)
