"""Kernels inside of wrappers are pruned and clustered as others are, and found again in what is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models
from tests.unit.pruner.test_cluster import cluster_file
from tests.unit.pruner.test_prune import Prune, Run, details, load, prune_file
from tests.unit.quantizer.quantizing import file_of, quantize_file

from squeezeflow.core import invariants
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants import crowded_groups, needed_zeros
from squeezeflow.core.step import StepOutputs
from squeezeflow.modelkit import clusterable, layer_kernels, support
from squeezeflow.modelkit.clustered import cluster_targets
from squeezeflow.modelkit.pruned import kernels_by_layer
from squeezeflow.modelkit.source import open_source
from squeezeflow.v1 import technique_pb2

STEPS = 3


@pytest.fixture
def prune(tmp_path: Path) -> Run:
    return partial(prune_file, tmp_path)


@pytest.fixture
def cluster(tmp_path: Path) -> Run:
    return partial(cluster_file, tmp_path)


def words(count: int = 64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    # Nothing of what follows a zero is read.
    ids = rng.integers(1, 30, (count, STEPS)) * (np.arange(STEPS) < rng.integers(2, STEPS + 1, (count, 1)))
    return {"x_train": ids.astype(np.int32), "y_train": rng.integers(0, 2, count)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a model with a wrapper of every kind, over sequences of which some steps are masked."""
    import tf_keras

    tf_keras.utils.set_random_seed(1)
    layers = tf_keras.layers
    each = tf_keras.Sequential(
        [tf_keras.Input((12,)), layers.Dense(10, name="inner"), layers.BatchNormalization(name="norm")], name="each"
    )
    cells = layers.StackedRNNCells([layers.LSTMCell(6, name="first"), layers.GRUCell(5, name="second")])
    ids = tf_keras.Input((STEPS,), dtype="int32", name="ids")
    x = layers.Embedding(30, 8, mask_zero=True, name="embedding")(ids)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True, dropout=0.1, unroll=True, name="lstm"), name="both")(
        x
    )
    x = layers.TimeDistributed(each, name="steps")(x)
    x = layers.RNN(cells, unroll=True, name="stack")(x)
    x = layers.Dense(2, activation="softmax", name="label")(x)
    return models.save(tf_keras.Model(ids, x), tmp_path_factory.mktemp("wrapped") / "model.keras")


@dataclass(frozen=True)
class Pruned:
    """The model, pruned once for several tests."""

    outputs: StepOutputs
    kernels: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def pruned(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    outputs = prune_file(
        tmp_path_factory.mktemp("pruned"),
        source,
        words(),
        sparsity=0.75,
        layer_sparsities=[
            Prune.LayerSparsity(pattern="stack", sparsity=0.5),
            Prune.LayerSparsity(pattern="both/back*", sparsity=0.6),
        ],
        layers=technique_pb2.LayerSelection(exclude=["label", "stack/second"]),
    )
    return Pruned(outputs, inner_kernels(load(outputs)))


BOTH = technique_pb2.LayerSelection(include=["both"])


def sequences(count: int, steps: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x_train": rng.normal(size=(count, steps, 8)).astype(np.float32), "y_train": rng.integers(0, 2, count)}


def inner_kernels(model: Any) -> dict[str, np.ndarray]:
    return {
        kernel.name: kernel.weight.numpy()
        for part in layer_kernels.parts(model)
        for kernel in part.kernels(layer_kernels.KERNELS)
    }


def zeros(kernel: np.ndarray) -> int:
    return int(np.count_nonzero(kernel == 0))


SHARES = {
    "embedding": 0.75,
    "both/forward_lstm/lstm_cell/kernel": 0.75,
    "both/forward_lstm/lstm_cell/recurrent_kernel": 0.75,
    "both/backward_lstm/lstm_cell/kernel": 0.6,
    "both/backward_lstm/lstm_cell/recurrent_kernel": 0.6,
    "steps/each/inner": 0.75,
    "stack/first/kernel": 0.5,
    "stack/first/recurrent_kernel": 0.5,
}


def test_kernels_inside_of_every_wrapper_are_pruned_each_to_its_own_sparsity(pruned: Pruned, source: Path) -> None:
    import tf_keras

    for name, share in SHARES.items():
        kernel = pruned.kernels[name]
        assert zeros(kernel) == needed_zeros(kernel.size, share), name
    for name in pruned.kernels.keys() - SHARES:
        assert zeros(pruned.kernels[name]) == 0, name
    original = tf_keras.models.load_model(str(source))
    assert load(pruned.outputs).get_config() == original.get_config()
    assert {i.name: i.passed for i in pruned.outputs.invariants} == dict.fromkeys(
        ("finite", "alive", "close", "sparsity"), True
    )
    sparsity = pruned.outputs.invariants[-1].detail
    assert all(f"{name} " in sparsity for name in SHARES)


def test_the_table_of_layers_names_what_lies_inside_of_wrappers(pruned: Pruned) -> None:
    found = {outcome.layer: (outcome.class_name, outcome.applied, outcome.detail) for outcome in pruned.outputs.layers}
    assert list(found) == [
        *("ids", "embedding", "both/forward_lstm", "both/backward_lstm", "steps/each/inner", "steps/each/norm"),
        *("stack/first", "stack/second", "label"),
    ]
    assert found["both/forward_lstm"] == ("LSTM", True, "sparsity 0.750")
    assert found["stack/first"] == ("LSTMCell", True, "sparsity 0.500")
    assert found["stack/second"][2] == "left out by the request: layers.exclude names stack/second"
    assert "BatchNormalization" in found["steps/each/norm"][2]


def test_clusters_keep_the_zeros_inside_of_wrappers(pruned: Pruned, cluster: Run) -> None:
    assert pruned.outputs.artifact is not None
    outputs = cluster(
        pruned.outputs.artifact.path,
        words(),
        number_of_clusters=5,
        layer_clusters=[{"pattern": "both", "number_of_clusters": 4}],
    )
    assert [(i.name, i.passed) for i in outputs.invariants][3:] == [("clusters", True), ("sparsity", True)]
    found = inner_kernels(load(outputs))
    for name, kernel in found.items():
        assert np.unique(kernel).size <= (4 if name.startswith("both") else 5), name
        assert zeros(kernel) >= zeros(pruned.kernels[name]), name
    assert not np.array_equal(np.unique(found["both/forward_lstm/lstm_cell/kernel"]), [0.0]), "something is left"
    assert "4 of 4 values, sparsity 0.7" in details(outputs)["both/forward_lstm"]
    source = open_source(outputs.artifact)
    # Small kernels do not tell whether they are clustered.
    assert {"both/forward_lstm", "both/backward_lstm", "steps/each/inner"} <= {t.layer for t in cluster_targets(source)}
    assert {"both/backward_lstm_1", "stack/first", "stack/second_1"} <= set(kernels_by_layer(source))


def test_at_once_patterns_hold_in_every_matrix_inside_of_wrappers(source: Path, prune: Run) -> None:
    outputs = prune(source, None, one_shot=True, m_by_n=Prune.MByN(m=2, n=4))
    for name, kernel in inner_kernels(load(outputs)).items():
        assert crowded_groups(kernel, 2, 4, -2)[0] == 0, name
    blocks = prune(source, None, one_shot=True, sparsity=0.5, block_height=1, block_width=4, layers=BOTH)
    kernel = inner_kernels(load(blocks))["both/backward_lstm/lstm_cell/kernel"]
    assert set(np.count_nonzero(kernel.reshape(8, 6, 4), axis=-1).reshape(-1)) == {0, 4}


def test_m_of_n_is_kept_while_wrapped_layers_and_a_cell_are_trained(tmp_path: Path, prune: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(1)
    steps = tf_keras.Input((3, 8), name="steps")
    x = layers.TimeDistributed(layers.Dense(8, name="dense"), name="each")(steps)
    x = layers.RNN(layers.SimpleRNNCell(5, name="cell"), unroll=True, name="plain")(x)
    path = models.save(tf_keras.Model(steps, layers.Dense(2, name="label")(x)), tmp_path / "plain.keras")
    outputs = prune(path, sequences(32, 3), m_by_n=Prune.MByN(m=2, n=4), fine_tune={"from_logits": True})
    found = inner_kernels(load(outputs))
    assert all(crowded_groups(kernel, 2, 4, -2)[0] == 0 for kernel in found.values())
    assert (zeros(found["each/dense"]), zeros(found["plain/cell/kernel"])) == (32, 20)
    assert "plain/cell/kernel 2 of 4" in outputs.invariants[-1].detail


def test_channels_of_a_wrapped_convolution_have_centroids_of_their_own(tmp_path: Path, cluster: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(1)
    frames = tf_keras.Input((3, 6, 6, 2), name="frames")
    x = layers.TimeDistributed(layers.Conv2D(4, 3, name="conv"), name="steps")(frames)
    x = layers.Dense(2, name="label")(layers.Flatten()(x))
    path = models.save(tf_keras.Model(frames, x), tmp_path / "frames.keras")
    kernel = inner_kernels(load(cluster(path, None, one_shot=True, number_of_clusters=3, per_channel=True)))
    assert invariants.distinct(kernel["steps/conv"], -1) == 3
    assert np.unique(kernel["steps/conv"]).size > 3


def test_one_direction_may_be_frozen_and_keeps_every_weight(tmp_path: Path, prune: Run, cluster: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    forwards = layers.SimpleRNN(6, name="first", trainable=False, unroll=True)
    backwards = layers.SimpleRNN(6, name="other", go_backwards=True, unroll=True)
    steps = tf_keras.Input((2, 8), name="steps")
    both = layers.Bidirectional(forwards, backward_layer=backwards, trainable=True, name="both")
    x = layers.Dense(2, activation="softmax", name="label")(both(steps))
    both.forward_layer.trainable = False
    path = models.save(tf_keras.Model(steps, x), tmp_path / "half.keras")
    before = inner_kernels(tf_keras.models.load_model(str(path)))
    data = sequences(32, 2)
    for outputs in (prune(path, data, sparsity=0.5), cluster(path, data, number_of_clusters=4)):
        found = details(outputs)
        assert found["both/forward_first"].startswith("frozen (trainable is false)")
        assert not found["both/backward_other"].startswith("frozen")
        after = inner_kernels(load(outputs))
        for name in before:
            same = np.array_equal(before[name], after[name])
            assert same == name.startswith("both/forward"), name


def test_an_int8_file_of_a_pruned_bidirectional_lstm_keeps_the_zeros_of_both(tmp_path: Path, prune: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    tf_keras.utils.set_random_seed(1)
    steps = tf_keras.Input((STEPS, 8), name="steps")
    x = layers.Bidirectional(layers.LSTM(12, name="lstm"), name="both")(steps)
    path = models.save(tf_keras.Model(steps, layers.Dense(3, name="label")(x)), tmp_path / "both.keras")
    data = sequences(96, STEPS)
    pruned = prune(path, data, sparsity=0.8, fine_tune={"from_logits": True})
    assert pruned.artifact is not None
    outputs = quantize_file(tmp_path, pruned.artifact.path, data, mode=technique_pb2.Quantize.MODE_INT8)
    (sparsity,) = (i for i in outputs.invariants if i.name == "sparsity")
    assert sparsity.passed
    kept = {part.split(" ")[0]: part for part in sparsity.detail.split("; ")}
    least = {"": needed_zeros(8 * 48, 0.8), "_1": needed_zeros(12 * 48, 0.8)}
    for direction in ("forward", "backward"):
        for suffix, count in least.items():
            assert f"least {count}" in kept[f"both/{direction}_lstm{suffix}"]
    assert "not in the file" not in sparsity.detail
    operators = [operator.name for graph in file_of(outputs).subgraphs for operator in graph.operators]
    assert operators.count("UNIDIRECTIONAL_SEQUENCE_LSTM") == 2


def test_a_pattern_that_names_nothing_inside_of_a_wrapper_is_refused(source: Path, prune: Run) -> None:
    with pytest.raises(SqueezeflowError, match=r"no layer is named both/lstm: choose from .*both/for") as refusal:
        prune(source, None, one_shot=True, layers=technique_pb2.LayerSelection(include=["both/lstm"]))
    assert refusal.value.reason == "INVALID_PARAMETER"


def test_a_wrapper_is_described_by_what_lies_inside_of_it(source: Path) -> None:
    import tf_keras

    model = tf_keras.models.load_model(str(source))
    for name in ("both", "steps", "stack"):
        assert support.prune_reason(model.get_layer(name)) == clusterable.cluster_reason(model.get_layer(name)) == ""
    norm = tf_keras.layers.TimeDistributed(tf_keras.layers.BatchNormalization(name="norm"), name="each")
    norm.build((None, 3, 4))
    assert support.prune_reason(norm) == "each/norm: has no kernel that TFMOT prunes (BatchNormalization)"
