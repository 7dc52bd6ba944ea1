"""Recurrent layers in integer modes: unrolled where the converter or LiteRT could not take them, and only there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models
from tests.unit.quantizer.quantizing import Run, artifact, file_of, passed, quantize_file

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.litert import Runner
from squeezeflow.core.step import StepOutputs
from squeezeflow.modelkit import unrolled
from squeezeflow.modelkit.source import open_source
from squeezeflow.quantizer import modes, unrolling

MODES = {mode.name: number for number, mode in modes.MODES.items()}
STEPS, FEATURES = 4, 3


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(quantize_file, tmp_path)


def sequences(count: int = 24, steps: int = STEPS) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, steps, FEATURES)).astype(np.float32)


def sequence_model(layers: Any, *recurrent: Any, steps: int | None = STEPS, **options: Any) -> Any:
    """Gives a model of recurrent layers and a dense one whose outputs differ from sample to sample."""
    import keras
    import tf_keras

    library = tf_keras if layers is tf_keras.layers else keras
    x = inputs = library.Input((steps, FEATURES), name="x", **options)
    for layer in recurrent:
        x = layer(x)
    outputs = layers.Dense(4, activation="softmax", kernel_initializer="random_normal", name="label")(x)
    model = library.Model(inputs, outputs)
    kernel, bias = model.get_layer("label").get_weights()
    model.get_layer("label").set_weights([kernel * 60, bias])
    return model


@pytest.fixture(scope="module")
def gru(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tf_keras

    tf_keras.utils.set_random_seed(7)
    cell = tf_keras.layers.GRU(5, bias_initializer="random_normal", name="cell")
    model = sequence_model(tf_keras.layers, cell)
    return models.save(model, tmp_path_factory.mktemp("models") / "gru.keras")


def told(outputs: StepOutputs) -> dict[str, str]:
    return {layer.layer: layer.detail for layer in outputs.layers if layer.applied}


def operators(outputs: StepOutputs) -> set[str]:
    return {operator.name for graph in file_of(outputs).subgraphs for operator in graph.operators}


def wrong_biases(outputs: StepOutputs) -> list[str]:
    """Names the biases that have not the scale of what they are added to; LiteRT does not look at it."""
    graph, wrong = file_of(outputs).main, []
    for operator in graph.operators:
        if operator.name == "FULLY_CONNECTED" and len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            given, kernel, bias = (graph.tensors[index] for index in operator.inputs[:3])
            if not np.allclose(np.multiply(given.scales, kernel.scales), bias.scales, rtol=1e-4):
                wrong.append(bias.name)
    return wrong


# What is made


@pytest.mark.parametrize("mode", ["int8", "int8_io", "uint8_io", "int16x8"])
def test_a_gru_is_integer_in_every_mode_and_forgets_between_samples(gru: Path, run: Run, mode: str) -> None:
    # Filled up with zeros, as sequences of several lengths are: int16 has no scale for a step that is always 0.
    filled = sequences()
    filled[:, -1] = 0
    outputs = run(gru, {"x_train": filled, "x_test": sequences()}, mode=MODES[mode])
    assert passed(outputs) == {"finite": True, "alive": True, "close": True, "integer": True}
    assert told(outputs) == {"cell": "unrolled into 4 steps: the converter cannot calibrate its loop"}
    assert any(note.startswith("unrolled: compared on 32 synthetic samples") for note in outputs.notes)
    assert any(note.startswith("every step is written out") for note in outputs.notes)
    assert outputs.metrics["sqnr_db"].value > 20
    assert not any(note.startswith("left float") for note in outputs.notes)
    assert outputs.artifact is not None
    assert outputs.contract is not None
    assert not file_of(outputs).stateful
    assert list(outputs.contract.inputs[0].shape) == [1, STEPS, FEATURES]
    assert len(outputs.contract.golden_samples) == 4
    if mode == "int16x8":
        assert wrong_biases(outputs) == []
    if mode == "int8":
        runner = Runner(outputs.artifact.path, outputs.contract)
        (forwards,) = runner.invoke({"x": sequences()}).values()
        (backwards,) = runner.invoke({"x": sequences()[::-1]}).values()
        np.testing.assert_array_equal(forwards, backwards[::-1])
        (expected,) = open_source(artifact(gru)).predict({"x": sequences()}).values()
        assert (expected.argmax(axis=-1) == forwards.argmax(axis=-1)).mean() > 0.9


def test_an_lstm_is_unrolled_for_int16_and_stays_one_operator_in_int8(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    path = models.save(sequence_model(layers, layers.LSTM(5, name="cell")), tmp_path / "lstm.keras")
    wide = run(path, {"x_train": sequences()}, mode=MODES["int16x8"])
    assert told(wide) == {"cell": "unrolled into 4 steps: there is no int16 kernel for UNIDIRECTIONAL_SEQUENCE_LSTM"}
    assert passed(wide)["integer"]
    fused = run(path, {"x_train": sequences()}, mode=MODES["int8"])
    assert fused.layers == ()
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in operators(fused)
    assert wide.metrics["sqnr_db"].value > fused.metrics["sqnr_db"].value


def test_only_the_layers_that_loop_are_unrolled_beside_a_fused_lstm(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    model = sequence_model(layers, layers.LSTM(4, return_sequences=True), layers.SimpleRNN(4, name="plain"))
    outputs = run(models.save(model, tmp_path / "mixed.keras"), {"x_train": sequences()}, mode=MODES["int8"])
    assert set(told(outputs)) == {"plain"}
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in operators(outputs)


def test_both_directions_sequences_and_states_of_keras_3_are_unrolled(tmp_path: Path, run: Run) -> None:
    import keras

    keras.utils.set_random_seed(7)
    L = keras.layers
    inputs = keras.Input((STEPS, FEATURES), name="x")
    x = L.Bidirectional(L.GRU(4, return_sequences=True), merge_mode="sum", name="both")(inputs)
    x, state = L.GRU(5, return_sequences=True, return_state=True, go_backwards=True, name="encoder")(x)
    x = L.GRU(5, name="decoder")(x, initial_state=state)
    model = keras.Model(inputs, L.Dense(3, kernel_initializer="random_normal")(x))
    outputs = run(models.save(model, tmp_path / "keras3.keras"), {"x_train": sequences()}, mode=MODES["int8"])
    assert passed(outputs)["integer"]
    assert set(told(outputs)) == {"both", "encoder", "decoder"}
    assert told(outputs)["both"].startswith("unrolled into 4 steps, in both directions")


def test_what_needs_no_samples_keeps_its_loop(gru: Path, run: Run) -> None:
    outputs = run(gru, mode=MODES["dynamic"])
    assert outputs.layers == ()
    assert "WHILE" in operators(outputs)


# What is refused


def refusal(run: Run, path: Path, steps: int, mode: str = "int8") -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as refused:
        run(path, {"x_train": sequences(8, steps)}, mode=MODES[mode])
    return refused.value


def test_layers_that_cannot_be_unrolled_are_refused_by_name_before_the_converter_dies(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers = tf_keras.layers
    long = unrolled.MOST_STEPS + 1
    cases = {
        "free": (sequence_model(layers, layers.GRU(4, name="cell"), steps=None), STEPS, "number of steps is not known"),
        "long": (sequence_model(layers, layers.GRU(4, name="cell"), steps=long), long, f"it takes {long} steps"),
        "stateful": (
            sequence_model(layers, layers.GRU(4, stateful=True, name="cell"), batch_size=1),
            STEPS,
            "stateful",
        ),
    }
    for name, (model, steps, cause) in cases.items():
        error = refusal(run, models.save(model, tmp_path / f"{name}.keras"), steps)
        assert (error.reason, error.metadata.get("layer")) == ("UNSUPPORTED_LAYER", "cell"), error
        assert cause in error.message
        assert "use mode DYNAMIC" in error.message


def test_the_steps_of_all_layers_count_together(tmp_path: Path, run: Run) -> None:
    import tf_keras

    layers, half = tf_keras.layers, unrolled.MOST_STEPS // 2 + 1
    stacked = [layers.GRU(2, return_sequences=True), layers.GRU(2, name="last")]
    path = models.save(sequence_model(layers, *stacked, steps=half), tmp_path / "stacked.keras")
    error = refusal(run, path, half)
    assert error.reason == "UNSUPPORTED_LAYER"
    assert f"take {2 * half} steps together" in error.message


def test_a_loop_of_a_saved_model_is_refused_with_its_operator(gru: Path, tmp_path: Path, run: Run) -> None:
    import tf_keras

    folder = models.save(tf_keras.models.load_model(str(gru)), tmp_path / "graph")
    error = refusal(run, folder, STEPS)
    assert (error.reason, error.metadata["op"]) == ("UNSUPPORTED_OP", "WHILE")
    assert "give the .keras file" in error.message


def test_a_loop_that_the_converter_survives_stays(tmp_path: Path, run: Run) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.kernel = tf.Variable(np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32) * 0.3)

    @tf.function(input_signature=[tf.TensorSpec((1, 8), tf.float32, name="x")])
    def powers(x: Any) -> Any:
        loop = tf.while_loop(lambda i, y: i < 4, lambda i, y: (i + 1, y @ module.kernel), [tf.constant(0), x])
        return {"y": loop[1] @ module.kernel}

    tf.saved_model.save(module, str(tmp_path / "loop"), signatures={"serving_default": powers})
    rows = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    outputs = run(tmp_path / "loop", {"x_train": rows}, mode=MODES["int8"])
    assert passed(outputs)["integer"]
    assert "WHILE" in operators(outputs)
    with pytest.raises(SqueezeflowError, match="the graph has a WHILE") as refused:
        run(tmp_path / "loop", {"x_train": rows}, mode=MODES["int16x8"])
    assert refused.value.reason == "UNSUPPORTED_OP"


def test_an_unrolled_model_that_computes_something_else_is_refused(gru: Path, tmp_path: Path) -> None:
    import tf_keras

    model = tf_keras.models.load_model(str(gru))
    model.get_layer("cell").set_weights([weight * 1.001 for weight in model.get_layer("cell").get_weights()])
    other = models.save(model, tmp_path / "other.keras")
    with pytest.raises(SqueezeflowError, match="with cell unrolled differs") as refused:
        unrolling._compared(open_source(artifact(gru)), open_source(artifact(other)), None, [("cell", None)])
    assert refused.value.reason == "OUTPUT_MISMATCH"


# Layers


def test_layers_loop_again_when_their_model_was_traced() -> None:
    import tf_keras

    layers = tf_keras.layers
    both = layers.Bidirectional(layers.LSTM(2))
    sequence_model(layers, both)
    before = [(one.unroll, one._could_use_gpu_kernel) for one in unrolled.directions(both)]
    with unrolled.written_out([both]):
        assert [(one.unroll, one._could_use_gpu_kernel) for one in unrolled.directions(both)] == [(True, False)] * 2
    assert [(one.unroll, one._could_use_gpu_kernel) for one in unrolled.directions(both)] == before
    assert unrolled.cost(both) == 2 * STEPS
