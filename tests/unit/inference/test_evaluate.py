"""Evaluation of real files on real data, against what LiteRT itself gives sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from tests.tflite_models import DATA, tflite_models

from squeezeflow.core import contracts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath, StepInputs, StepOutputs
from squeezeflow.inference import evaluate
from squeezeflow.v1 import artifact_pb2, evaluator_pb2


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    with np.load(DATA / "fashion_mnist.npz", allow_pickle=False) as arrays:
        return {"x": arrays["x_test"][:700], "y": arrays["y_test"][:700].astype("int64")}


def one_by_one(model: str, images: np.ndarray) -> np.ndarray:
    """Gives the raw outputs of a float I/O file for uint8 images, one invocation a sample."""
    interpreter = Interpreter(str(tflite_models() / model))
    interpreter.allocate_tensors()
    given, got = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    rows = []
    for image in images:
        interpreter.set_tensor(given, image.astype("float32").reshape(1, 28, 28, 1) / 255)
        interpreter.invoke()
        rows.append(interpreter.get_tensor(got)[0])
    return np.array(rows)


def step_inputs(folder: Path, *, model: str, baseline: str = "", arrays: dict[str, Any], **options: Any) -> StepInputs:
    np.savez(folder / "data.npz", **arrays)
    artifacts = {"data": ArtifactPath(artifact_pb2.ARTIFACT_KIND_DATASET, folder / "data.npz")}
    for role, contract, name in (("model", "contract", model), ("baseline", "baseline_contract", baseline)):
        if name:
            path = tflite_models() / name
            (folder / contract).write_bytes(contracts.encode(contracts.foreign(path)))
            artifacts[role] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, path)
            artifacts[contract] = ArtifactPath(artifact_pb2.ARTIFACT_KIND_CONTRACT, folder / contract)
    return StepInputs(artifacts, folder, **options)


def run(inputs: StepInputs, *, max_samples: int = 0, seen: list[float] | None = None) -> StepOutputs:
    def report(fraction: float, stage: str, **details: Any) -> None:
        if seen is not None:
            seen.append(fraction)

    return evaluate.run(evaluator_pb2.EvaluateRequest(max_samples=max_samples), inputs, report)


def test_accuracy_drop_and_flips_are_those_of_single_samples(fashion: dict[str, np.ndarray], tmp_path: Path) -> None:
    arrays = {"x_test": fashion["x"], "y_test": fashion["y"]}
    seen: list[float] = []
    outputs = run(
        step_inputs(tmp_path, model="cnn_int8.tflite", baseline="cnn.tflite", arrays=arrays, scale=(1 / 255,)),
        seen=seen,
    )
    base = one_by_one("cnn.tflite", fashion["x"]).argmax(1)
    candidate = one_by_one("cnn_int8.tflite", fashion["x"]).argmax(1)
    accuracy = (candidate == fashion["y"]).mean()
    metrics = outputs.metrics
    assert metrics["accuracy"].value == pytest.approx(accuracy)
    assert 0.6 < accuracy < 1
    assert metrics["accuracy_drop"].value == pytest.approx((base == fashion["y"]).mean() - accuracy)
    assert metrics["label_flips"].value == pytest.approx((base != candidate).mean())
    assert all(metrics[name].samples == 700 for name in ("accuracy", "accuracy_drop", "label_flips"))
    assert metrics["accuracy"].low < accuracy < metrics["accuracy"].high
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert {"baseline: 64 samples an invocation", "candidate: 64 samples an invocation"} <= set(outputs.notes)


def test_integer_inputs_and_outputs_give_what_the_same_net_gives_with_float_ones(
    fashion: dict[str, np.ndarray], tmp_path: Path
) -> None:
    arrays = {"x_test": fashion["x"], "y_test": fashion["y"]}
    inputs = step_inputs(
        tmp_path, model="cnn_int8_io.tflite", baseline="cnn_int8.tflite", arrays=arrays, scale=(1 / 255,)
    )
    assert run(inputs).metrics["label_flips"].value == 0


def test_max_samples_takes_the_first_and_says_so(fashion: dict[str, np.ndarray], tmp_path: Path) -> None:
    arrays = {"x_test": fashion["x"], "y_test": fashion["y"]}
    outputs = run(step_inputs(tmp_path, model="cnn.tflite", arrays=arrays, scale=(1 / 255,)), max_samples=100)
    expected = (one_by_one("cnn.tflite", fashion["x"][:100]).argmax(1) == fashion["y"][:100]).mean()
    assert outputs.metrics["accuracy"].value == pytest.approx(expected)
    assert outputs.metrics["accuracy"].samples == 100
    assert "the first 100 of 700 test samples were used" in outputs.notes
    assert set(outputs.metrics) == {"accuracy"}


def test_a_sigmoid_and_its_logit_decide_alike(fashion: dict[str, np.ndarray], tmp_path: Path) -> None:
    shoes = np.isin(fashion["y"], (5, 7, 9)).astype("int64")
    arrays = {"x_test": fashion["x"], "y_test": shoes}
    inputs = step_inputs(tmp_path, model="logit.tflite", baseline="binary.tflite", arrays=arrays, scale=(1 / 255,))
    outputs = run(inputs)
    expected = ((one_by_one("binary.tflite", fashion["x"])[:, 0] > 0.5) == shoes).mean()
    assert outputs.metrics["accuracy"].value == pytest.approx(expected)
    assert 0 < expected < 1


def test_values_give_mean_absolute_errors(fashion: dict[str, np.ndarray], tmp_path: Path) -> None:
    moments = np.stack([fashion["x"].mean((1, 2)), fashion["x"].std((1, 2))], 1).astype("float32") / 255
    arrays = {"x_test": fashion["x"], "y_test": moments}
    inputs = step_inputs(tmp_path, model="values.tflite", baseline="values.tflite", arrays=arrays, scale=(1 / 255,))
    outputs = run(inputs)
    expected = np.abs(one_by_one("values.tflite", fashion["x"]) - moments).mean()
    assert outputs.metrics["mae"].value == pytest.approx(expected, rel=1e-4)
    assert outputs.metrics["mae_increase"].value == 0
    assert set(outputs.metrics) == {"mae", "mae_increase"}


def test_a_file_that_keeps_state_is_run_sample_by_sample(tmp_path: Path) -> None:
    steps = np.random.default_rng(0).normal(size=(40, 12, 3)).astype("float32")
    arrays = {"x_test": np.concatenate([steps, steps]), "y_test": np.zeros(80, "int64")}
    outputs = run(step_inputs(tmp_path, model="sequence.tflite", arrays=arrays))
    assert "candidate: 1 samples an invocation" in outputs.notes
    again = run(step_inputs(tmp_path, model="sequence.tflite", arrays={k: v[:40] for k, v in arrays.items()}))
    assert outputs.metrics["accuracy"].value == again.metrics["accuracy"].value


def test_an_output_that_is_not_finite_is_refused_with_its_sample(tmp_path: Path) -> None:
    images = np.ones((20, 28, 28, 1), "float32")
    images[13] = np.float32(3e38)  # overflows in the first layer
    arrays = {"x_test": images, "y_test": np.zeros(20, "int64")}
    with pytest.raises(SqueezeflowError, match="NON_FINITE_OUTPUT") as caught:
        run(step_inputs(tmp_path, model="cnn.tflite", arrays=arrays))
    assert caught.value.metadata == {"output": "answer", "sample": "13", "model": "candidate"}


def test_no_data_no_test_arrays_and_no_scale_are_told_apart(fashion: dict[str, np.ndarray], tmp_path: Path) -> None:
    train_only = {"x_train": fashion["x"], "y_train": fashion["y"]}
    with pytest.raises(SqueezeflowError, match="DATA_MISSING: evaluating needs x_test and y_test"):
        run(step_inputs(tmp_path, model="cnn.tflite", arrays=train_only, scale=(1 / 255,)))
    inputs = step_inputs(tmp_path, model="cnn.tflite", arrays={"x_test": fashion["x"], "y_test": fashion["y"]})
    with pytest.raises(SqueezeflowError, match=r"DATA_MISMATCH.*scale"):
        run(inputs)
    without = {role: path for role, path in inputs.artifacts.items() if role != "data"}
    with pytest.raises(SqueezeflowError, match="DATA_MISSING"):
        run(StepInputs(without, tmp_path))
