"""Quantization-aware training that was interrupted inside an epoch: plain, and keeping zeros, clusters or both."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.quantizer.training import model_of, samples

from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.core.step import Checkpoint
from squeezeflow.modelkit import checkpoints, finetune, keras_source
from squeezeflow.modelkit.flatten import flatten
from squeezeflow.quantizer.quantized_layers import plan_layers
from squeezeflow.quantizer.ranges import start_ranges
from squeezeflow.quantizer.wrapping import finish, wrap
from squeezeflow.v1 import technique_pb2

SHAPE, BATCHES = (8, 8, 1), 4
KERNELS = ("conv", "dense")


class Killed(Exception):
    """Stands for the end of the process."""


def network(layers: Any, x: Any) -> Any:
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    return layers.Dense(16, activation="relu", name="dense")(layers.Flatten(name="flat")(x))


@pytest.fixture(scope="module")
def kernels() -> Mapping[str, np.ndarray]:
    """Kernels with both: half of the weights zero, seven other values."""
    model, made = model_of(SHAPE, network), {}
    for name in KERNELS:
        values = model.get_layer(name).kernel.numpy()
        levels = np.linspace(values.min(), values.max(), 7).astype(np.float32)
        rounded = levels[np.abs(values[..., np.newaxis] - levels).argmin(-1)]
        made[name] = np.where(np.abs(values) <= np.quantile(np.abs(values), 0.5), 0, rounded)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, **samples(SHAPE))
    return path


def train(
    kernels: Mapping[str, np.ndarray], data: Path, params: technique_pb2.TrainQuantized, checkpoint: Checkpoint | None
) -> tuple[list[bytes], list[str], dict[str, np.ndarray]]:
    """Trains as the technique does; gives all variables, the notes, and the kernels as they are converted."""
    source = keras_source.of_model(model_of(SHAPE, network))
    for name, values in kernels.items():
        source.keras.get_layer(name).kernel.assign(values)
    bound: BoundData = Dataset.open(data).bind(source.contract)
    flat = flatten(source.keras)
    plans = plan_layers(flat.model, flat.paths, params)
    training = finetune.resolve(params.fine_tune, source, bound)
    finetune.seed_everything(training)
    wrapped = wrap(flat.model, plans, params)
    start_ranges(wrapped, bound, source.contract, training)
    notes = finetune.fit(wrapped, training, source, bound, lambda *told, **more: None, checkpoint=checkpoint)
    variables = [array.tobytes() for array in wrapped.get_weights()]
    finish(wrapped)
    trained = {name: wrapped.get_layer(name)._weight_vars[0][0].numpy() for name in KERNELS}
    return variables, notes, trained


@pytest.mark.parametrize(
    ("zeros", "clusters"),
    [
        pytest.param(False, False, id="QAT"),
        pytest.param(True, False, id="PQAT"),
        pytest.param(False, True, id="CQAT"),
        pytest.param(True, True, id="PCQAT"),
    ],
)
def test_a_training_goes_on_inside_an_epoch_to_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernels: Mapping[str, np.ndarray],
    data: Path,
    zeros: bool,
    clusters: bool,
) -> None:
    monkeypatch.setattr(checkpoints, "MOST_SHARE", 1e9)
    written = count(1)

    def saved() -> None:
        if next(written) == BATCHES + 2:
            raise Killed

    params = technique_pb2.TrainQuantized(
        preserve_sparsity=zeros,
        preserve_clusters=clusters,
        fine_tune={"epochs": 2, "batch_size": 24, "learning_rate": 0.01, "seed": 3},
    )
    whole, notes, trained = train(kernels, data, params, None)
    with pytest.raises(Killed):
        train(kernels, data, params, Checkpoint(tmp_path / "state", 1e-9, saved))
    resumed, told, again = train(kernels, data, params, Checkpoint(tmp_path / "state"))
    assert resumed == whole
    assert told == [*notes, "resumed from batch 2 of epoch 2: an earlier run of this step was interrupted"]
    for name, source in kernels.items():
        np.testing.assert_array_equal(again[name], trained[name])
        assert not np.array_equal(trained[name], source), "nothing was trained"
        assert not zeros or not again[name][source == 0].any()
        assert not clusters or len(np.unique(again[name])) <= len(np.unique(source))
