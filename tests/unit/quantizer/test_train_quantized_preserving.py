"""Training that keeps zeros and clusters: counted in the int8 file, where plain training loses them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.quantizer.training import details, file_of, invariant, model_of, refusal, samples, train

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import StepOutputs
from squeezeflow.core.tflite import TfliteFile

SHAPE = (12, 12, 1)
VALUES = 8
LOUD = {"learning_rate": 0.01}


def network(layers: Any, x: Any) -> Any:
    """Makes what TFMOT's own schemes lose zeros and clusters in, or refuse."""
    x = layers.ReLU(name="relu")(layers.Conv2D(8, 3, name="conv")(x))
    y = layers.Conv2D(6, 3, padding="same", activation="relu", name="left")(x)
    z = layers.ReLU(name="relu_2")(layers.Conv2D(6, 3, padding="same", name="right")(x))
    x = layers.Concatenate(name="both")([y, z])
    x = layers.Conv2DTranspose(8, 3, strides=2, activation="relu", name="transposed")(x)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv_2")(x)
    x = layers.ReLU(name="relu_3")(layers.BatchNormalization(name="norm")(x))
    x = layers.Dense(16, name="dense")(layers.Flatten(name="flat")(x))
    return layers.ReLU(name="relu_4")(layers.BatchNormalization(name="norm_2")(x))


KERNELS = ("conv", "left", "right", "transposed", "conv_2", "dense", "label")


def pruned(model: Any, layers: tuple[str, ...] = KERNELS, share: float = 0.5) -> Any:
    """Sets the smallest weights of some kernels to zero: a share of them, or more where several are equal."""
    for name in layers:
        kernel = model.get_layer(name).kernel
        values = kernel.numpy()
        kernel.assign(np.where(np.abs(values) <= np.quantile(np.abs(values), share), 0, values))
    return model


def clustered(model: Any) -> Any:
    """Rounds every kernel to a few values."""
    for name in KERNELS:
        kernel = model.get_layer(name).kernel
        values = kernel.numpy()
        levels = np.linspace(values.min(), values.max(), VALUES).astype(np.float32)
        kernel.assign(levels[np.abs(values[..., np.newaxis] - levels).argmin(-1)])
    return model


def zeros(file: TfliteFile) -> list[float]:
    return [weight.zeros / weight.tensor.size for weight in file.weights]


def most_values(file: TfliteFile) -> list[int]:
    """Gives for every weight the most distinct values in one of its output channels."""
    found = []
    for weight in file.weights:
        assert weight.values is not None
        assert weight.channel_axis is not None
        rows = np.moveaxis(weight.values, weight.channel_axis, 0)
        found.append(max(np.unique(row).size for row in rows))
    return found


def train_on(factory: pytest.TempPathFactory, name: str, model: Any, **params: Any) -> StepOutputs:
    return train(factory.mktemp(name), model, samples(SHAPE), fine_tune=LOUD, **params)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> StepOutputs:
    """Trained from a model whose first kernel has no zeros: it must not end the keeping of zeros in the others."""
    model = pruned(model_of(SHAPE, network), KERNELS[1:])
    return train_on(tmp_path_factory, "sparse", model, preserve_sparsity=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> StepOutputs:
    return train_on(tmp_path_factory, "shared", clustered(model_of(SHAPE, network)), preserve_clusters=True)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> StepOutputs:
    model = pruned(clustered(model_of(SHAPE, network)), share=0.3)
    return train_on(tmp_path_factory, "both", model, preserve_sparsity=True, preserve_clusters=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> StepOutputs:
    return train_on(tmp_path_factory, "plain", pruned(clustered(model_of(SHAPE, network)), share=0.3))


def test_plain_training_loses_zeros_and_clusters_and_says_so(plain: StepOutputs) -> None:
    assert min(zeros(file_of(plain))) < 0.2
    assert max(most_values(file_of(plain))) > 2 * VALUES
    assert any("set preserve_sparsity" in note for note in plain.notes)
    assert any("set preserve_clusters" in note for note in plain.notes)


def test_zeros_are_kept_in_every_kernel_that_had_some(sparse: StepOutputs) -> None:
    detail = invariant(sparse, "sparsity")
    assert all(f"{name} " in detail for name in KERNELS[1:])
    found = sorted(zeros(file_of(sparse)))
    assert found[0] < 0.3  # conv, which had none
    assert found[1] >= 0.49


def test_training_changes_what_it_keeps_the_zeros_of(sparse: StepOutputs) -> None:
    weight = file_of(sparse).weights[-1]
    before = pruned(model_of(SHAPE, network), ("label",)).get_layer("label").kernel.numpy().T
    assert weight.values is not None
    (scale,) = weight.tensor.scales
    assert np.abs(weight.values * scale - before).max() > 2 * scale


def test_clusters_are_kept_in_every_channel_of_every_kernel(shared: StepOutputs) -> None:
    assert all(f"{name} " in invariant(shared, "clusters") for name in KERNELS)
    assert max(most_values(file_of(shared))) <= VALUES


def test_zeros_and_clusters_are_kept_together(both: StepOutputs) -> None:
    file = file_of(both)
    assert min(zeros(file)) >= 0.3
    assert max(most_values(file)) <= VALUES
    assert {"sparsity", "clusters", "integer"} <= {invariant.name for invariant in both.invariants}


def test_what_is_kept_is_told_by_layer(both: StepOutputs) -> None:
    assert re.fullmatch(r"int8, zeros \(0\.[3-6]\d\d\) kept, clusters \([3-8]\) kept", details(both)["left"])


def test_a_float_layer_with_zeros_is_frozen(tmp_path: Path) -> None:
    model = model_of((20, 3), lambda layers, x: layers.Conv1D(8, 3, activation="relu", name="steps")(x))
    outputs = train(tmp_path, pruned(model, ("steps", "label")), samples((20, 3)), preserve_sparsity=True)
    assert "frozen, so that training keeps its zeros (0.500)" in details(outputs)["steps"]
    assert "steps 36 of 72 zeros" in invariant(outputs, "sparsity")


def test_what_is_not_kept_after_all_is_refused_by_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from squeezeflow.quantizer import wrapping
    from squeezeflow.quantizer.preserving import Keep

    monkeypatch.setattr(wrapping, "Keep", lambda **_: Keep())
    model = pruned(model_of(SHAPE, lambda layers, x: x), ("label",))
    error: SqueezeflowError = refusal(tmp_path, model, samples(SHAPE), preserve_sparsity=True, fine_tune=LOUD)
    assert error.reason == "INVARIANT_BROKEN"
    assert "label" in str(error)
