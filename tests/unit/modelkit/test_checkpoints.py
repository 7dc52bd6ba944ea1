"""Fits that go on from a checkpoint: the same weights, bit for bit, as a fit that was never interrupted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.core.step import Checkpoint
from squeezeflow.modelkit import checkpoints, finetune, fit_progress, fit_state, keras_source
from squeezeflow.v1 import technique_pb2

RNG = np.random.default_rng(7)
X = RNG.normal(size=(96, 6, 4)).astype(np.float32)
IDS = (X[:, 0, 0] > 0).astype(np.int64)
Wrap = Callable[[Any, int], tuple[Any, list[Any], int]]


class Killed(Exception):
    """Stands for the end of the process."""


def noisy() -> Any:
    """Every kind of layer that draws random numbers, one with a seed of its own; and one with moving figures."""
    from tf_keras import layers

    return [
        layers.Dense(6, activation="relu", name="first"),
        layers.Dropout(0.3, seed=5),
        layers.GaussianNoise(0.1),
        layers.SimpleRNN(4, dropout=0.2, recurrent_dropout=0.2),
        layers.BatchNormalization(),
        layers.Dropout(0.2),
    ]


def plain() -> Any:
    from tf_keras import layers

    return [layers.Flatten(), layers.Dense(16, activation="relu", name="first")]


def stateful() -> Any:
    """A layer whose state goes from one batch to the next, and is in no list of weights."""
    from tf_keras import layers

    return [layers.SimpleRNN(4, stateful=True, dropout=0.2)]


def drawing() -> Any:
    """Draws by an operation of TensorFlow, which counts its draws where nothing reads them."""
    import tensorflow as tf
    from tf_keras import layers

    class Noise(layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs + 0.1 * tf.random.normal(tf.shape(inputs))

    return [layers.Flatten(), Noise(), layers.Dense(16, activation="relu", name="first")]


def wider() -> Any:
    from tf_keras import layers

    return [layers.Flatten(), layers.Dense(17, activation="relu", name="first")]


def source_of(make: Callable[[], Any]) -> Any:
    import tf_keras

    tf_keras.utils.set_random_seed(3)
    outputs = tf_keras.layers.Dense(2, activation="softmax", name="y")
    inputs = tf_keras.Input((6, 4), name="x", batch_size=16 if make is stateful else None)
    return keras_source.of_model(tf_keras.Sequential([inputs, *make(), outputs]))


def unwrapped(model: Any, steps: int) -> tuple[Any, list[Any], int]:
    return model, [], 0


def pruned(model: Any, steps: int) -> tuple[Any, list[Any], int]:
    import tensorflow_model_optimization as tfmot

    end = steps // 2
    decay = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.75, begin_step=1, end_step=end, frequency=1)
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(model, decay)
    return wrapped, [tfmot.sparsity.keras.UpdatePruningStep()], end


def too_early(model: Any, steps: int) -> tuple[Any, list[Any], int]:
    """Prunes, and does not tell when the schedule ends."""
    return *pruned(model, steps)[:2], 0


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "data.npz"
    np.savez(path, x_train=X, y_train=IDS)
    return path


def fit(
    arrays: Path,
    make: Callable[[], Any],
    wrap: Wrap = unwrapped,
    *,
    checkpoint: Checkpoint | None = None,
    die_after: int = 0,
    report: Any = lambda *told, **more: None,
    **options: Any,
) -> tuple[list[np.ndarray], list[str], Any]:
    """Fits, or dies after some epochs; gives the weights, the notes and the source's model."""
    import tf_keras

    class Dies(tf_keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if die_after and epoch == die_after:
                raise Killed

    source = source_of(make)
    bound: BoundData = Dataset.open(arrays).bind(source.contract)
    size = 16 if make is stateful else 20
    request = technique_pb2.FineTune(**{"epochs": 4, "batch_size": size, "seed": 4, "learning_rate": 0.01, **options})
    training = finetune.resolve(request, source, bound)
    finetune.seed_everything(training)
    model, callbacks, end = wrap(source.keras, training.steps)
    notes = finetune.fit(
        model,
        training,
        source,
        bound,
        report,
        callbacks=[*callbacks, Dies()],
        checkpoint=checkpoint,
        stoppable_after_step=end,
    )
    return model.get_weights(), notes, source.keras


@pytest.fixture
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets checkpoints take all the time they want."""
    monkeypatch.setattr(checkpoints, "MOST_SHARE", 1e9)


def dying(path: Path, after: int) -> Checkpoint:
    """Gives a checkpoint that is written after every batch, and the end of the process after one of them."""
    written = count(1)

    def saved() -> None:
        if next(written) == after:
            raise Killed

    return Checkpoint(path, 1e-9, saved)


@pytest.mark.usefixtures("every_batch")
@pytest.mark.parametrize(
    ("make", "wrap", "options", "places"),
    [
        pytest.param(noisy, unwrapped, {"optimizer": "nadam"}, [(2, 0), (2, 3)], id="random layers"),
        pytest.param(stateful, unwrapped, {"optimizer": "rmsprop"}, [(1, 4)], id="states of recurrent layers"),
        pytest.param(plain, pruned, {"patience": 2}, [(2, 3)], id="pruning, early stopping"),
    ],
)
def test_a_resumed_fit_gives_the_bits_of_an_uninterrupted_one(
    tmp_path: Path,
    arrays: Path,
    make: Any,
    wrap: Wrap,
    options: dict[str, Any],
    places: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit_progress, "INTERVAL_SECONDS", 0.0)
    told: list[Any] = []

    def report(fraction: float, stage: str, *, epoch: int, metrics: Any, **more: Any) -> None:
        told.append((fraction, epoch, metrics))

    whole, notes, _ = fit(arrays, make, wrap, report=report, **options)
    all_told, steps = list(told), len(told) // 4 - 1  # every batch is told, and every epoch
    for epoch, batch in places:
        state = tmp_path / f"{epoch}-{batch}"
        with pytest.raises(Killed):
            fit(arrays, make, wrap, checkpoint=dying(state, epoch * steps + batch), **options)
        told.clear()
        again = Checkpoint(state, seconds=1000)
        resumed, said, _ = fit(arrays, make, wrap, checkpoint=again, report=report, **options)
        assert [array.tobytes() for array in resumed] == [array.tobytes() for array in whole]
        place = f"batch {batch} of epoch {epoch + 1}" if batch else f"epoch {epoch}"
        assert sorted(said) == sorted([*notes, f"resumed from {place}: an earlier run of this step was interrupted"])
        assert told == all_told[epoch * (steps + 1) + batch :]
    assert {path.name for path in tmp_path.iterdir()} == {f"{epoch}-{batch}" for epoch, batch in places}


@pytest.mark.usefixtures("every_batch")
def test_state_that_no_checkpoint_holds_keeps_checkpoints_to_the_ends_of_epochs(tmp_path: Path, arrays: Path) -> None:
    with pytest.raises(Killed):
        fit(arrays, drawing, checkpoint=dying(tmp_path / "state", 2))
    assert fit_state.read(tmp_path / "state").describe() == "epoch 2"
    _, notes, _ = fit(arrays, drawing, checkpoint=Checkpoint(tmp_path / "state"))
    assert any(note.endswith("holds all that it depends on: the operation RandomStandardNormal") for note in notes)
    _, notes, _ = fit(arrays, drawing, checkpoint=Checkpoint(tmp_path / "other"))
    assert not any("operation" in note for note in notes)


@pytest.mark.usefixtures("every_batch")
def test_checkpoints_at_every_batch_trace_nothing_anew(tmp_path: Path, arrays: Path) -> None:
    _, _, model = fit(arrays, plain)
    traced = model.train_function.experimental_get_tracing_count()
    _, _, model = fit(arrays, plain, checkpoint=Checkpoint(tmp_path / "state", 1e-9))
    assert model.train_function.experimental_get_tracing_count() == traced


def test_checkpoints_take_a_small_share_of_the_time(tmp_path: Path, arrays: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(checkpoints, "MOST_SHARE", 1e-9)
    written: list[str] = []

    def saved() -> None:
        written.append(fit_state.read(tmp_path / "state").describe())

    fit(arrays, plain, checkpoint=Checkpoint(tmp_path / "state", 1e-9, saved))
    assert written == ["batch 1 of epoch 1"]


def test_a_checkpoint_that_cannot_be_written_costs_no_training(tmp_path: Path, arrays: Path) -> None:
    whole, notes, _ = fit(arrays, plain, epochs=2)
    weights, told, _ = fit(arrays, plain, checkpoint=Checkpoint(tmp_path / "gone" / "state"), epochs=2)
    assert [array.tobytes() for array in weights] == [array.tobytes() for array in whole]
    assert told == [*notes, "a checkpoint could not be written: No such file or directory"]


def test_a_checkpoint_of_another_step_or_of_a_longer_fit_is_not_used(tmp_path: Path, arrays: Path) -> None:
    whole, _, _ = fit(arrays, plain, epochs=2)
    fit(arrays, plain, checkpoint=Checkpoint(tmp_path / "state", action="a" * 64), epochs=3)
    for why, action in (("it is of another step", "b"), ("it is of a longer fit", "a")):
        checkpoint = Checkpoint(tmp_path / "state", seconds=1000, action=action * 64)
        weights, notes, _ = fit(arrays, plain, checkpoint=checkpoint, epochs=2)
        assert notes[-1] == f"the checkpoint of an earlier run was not used, {why}: the fit began anew"
        assert [array.tobytes() for array in weights] == [array.tobytes() for array in whole]


def test_a_fit_that_had_ended_is_not_trained_again(tmp_path: Path, arrays: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state")
    options = {"patience": 1, "min_delta": 1000.0}
    first, notes, _ = fit(arrays, plain, checkpoint=checkpoint, **options)
    assert "early stopping: stopped after epoch 2 of 4" in notes[1]
    again, told, _ = fit(arrays, plain, checkpoint=checkpoint, die_after=2, **options)
    assert [array.tobytes() for array in again] == [array.tobytes() for array in first]
    assert told[0] == notes[0]
    assert told[-1] == notes[1]
    assert "resumed from epoch 2" in told[1]


def test_the_best_epoch_of_a_pruned_model_is_a_sparse_one(arrays: Path) -> None:
    # With this min_delta the first epoch that counts stays the best one.
    sparsities = []
    for wrap in (pruned, too_early):
        _, notes, model = fit(arrays, plain, wrap, patience=4, min_delta=1000.0)
        sparsities.append(np.mean(model.get_layer("first").get_weights()[0] == 0))
        assert any("the weights are those of epoch" in note for note in notes)
    assert sparsities[0] == pytest.approx(0.75)
    assert sparsities[1] < 0.7


def test_random_layers_draw_anew_every_epoch_and_are_left_as_they_were(arrays: Path) -> None:
    import tf_keras

    model = tf_keras.Sequential([tf_keras.Input((50,)), tf_keras.layers.Dropout(0.5)])
    config = model.get_config()
    drawn = []
    with finetune.epoch_seeds(model, 1) as seeds:
        for epoch in (0, 1, 0):
            seeds.on_epoch_begin(epoch)
            drawn.append(model(np.ones((1, 50)), training=True).numpy().tobytes())
    assert drawn[0] == drawn[2] != drawn[1]
    assert model.get_config() == config
    assert not model.weights


def test_a_damaged_or_foreign_checkpoint_is_not_used_and_said(tmp_path: Path, arrays: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state")
    whole, _, _ = fit(arrays, plain, epochs=2)
    fit(arrays, plain, checkpoint=checkpoint, epochs=1)
    state = checkpoint.path.read_bytes()
    for damaged in (state[:-1], state[:200] + b"\1" + state[201:], b"", b"x" * 500):
        checkpoint.path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            fit_state.read(checkpoint.path)
    weights, notes, _ = fit(arrays, plain, checkpoint=Checkpoint(checkpoint.path, seconds=1000), epochs=2)
    assert notes[-1] == "the checkpoint of an earlier run was not used, it is damaged: the fit began anew"
    assert [array.tobytes() for array in weights] == [array.tobytes() for array in whole]
    checkpoint.path.write_bytes(state)
    _, notes, _ = fit(arrays, wider, checkpoint=checkpoint, epochs=1)
    assert "its weights are not those of the model" in notes[-1]
    checkpoint.path.write_bytes(state)
    _, notes, _ = fit(arrays, plain, checkpoint=checkpoint, epochs=1, optimizer="sgd")
    assert "its optimizer variables are not those of the model" in notes[-1]


def test_nothing_is_written_before_its_time(tmp_path: Path, arrays: Path) -> None:
    fit(arrays, plain, checkpoint=Checkpoint(tmp_path / "state", seconds=1000), epochs=2)
    assert not list(tmp_path.iterdir())
