"""What CreateJob finds out, with a real store and real datasets; only the converter is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeezeflow.core.artifacts import Artifacts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import open_store
from squeezeflow.orchestrator.checks import Checks, Findings
from squeezeflow.orchestrator.plan import DataFacts
from squeezeflow.v1 import artifact_pb2, contract_pb2, jobs_pb2, model_pb2

CONTRACT = contract_pb2.Contract(
    inputs=[contract_pb2.TensorContract(name="image", shape=[-1, 4], dtype="float32")],
    outputs=[contract_pb2.TensorContract(name="label", shape=[-1, 3], dtype="float32")],
)
X, Y = np.zeros((6, 4), np.float32), np.zeros(6, np.int64)
GONE = SqueezeflowError("WORKER_UNAVAILABLE", "converter is not there")


class FakeConverter:
    """Answers DescribeModel; exceptions first."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.description = model_pb2.ModelDescription(contract=CONTRACT)
        self.asked = 0

    async def ask(self, target: str, method: str, request: Any, answer: Any, *, tenant: str, timeout: float) -> Any:
        assert (target, method) == ("converter:1", "squeezeflow.v1.Converter/DescribeModel")
        self.asked += 1
        given = self.answers.pop(0) if self.answers else self.description
        if isinstance(given, Exception):
            raise given
        return given


class Desk:
    """Checks over a folder store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = open_store(f"dir:{folder / 'store'}")
        self.converter = FakeConverter()
        workers: Any = self.converter
        self.checks = Checks(self.store, workers, "converter:1", folder / "scratch", wait_seconds=5)
        self.model = self.put(artifact_pb2.ARTIFACT_KIND_KERAS, b"PK model")

    def put(self, kind: int, data: bytes) -> str:
        path = self.folder / "file"
        path.write_bytes(data)
        return Artifacts(self.store, "default").write(kind, path).digest

    def dataset(self, **arrays: Any) -> str:
        path = self.folder / "data.npz"
        np.savez(path, **arrays)
        return self.put(artifact_pb2.ARTIFACT_KIND_DATASET, path.read_bytes())

    async def run(self, data: str = "", tenant: str = "default", model: str = "", **fields: Any) -> Findings:
        spec = jobs_pb2.JobSpec(model={"artifact": model or self.model})
        if data:
            spec.data.MergeFrom(type(spec.data)(artifact=data, **fields))
        return await self.checks.run(tenant, spec)

    async def refused(self, *args: Any, **options: Any) -> SqueezeflowError:
        with pytest.raises(SqueezeflowError) as caught:
            await self.run(*args, **options)
        return caught.value


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_a_job_without_data_offers_none(desk: Desk) -> None:
    assert (await desk.run()).facts == DataFacts()


@pytest.mark.parametrize(
    ("arrays", "facts"),
    [
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}, DataFacts(train=True, calibration=True, test=True)),
        ({"x_train": X}, DataFacts(calibration=True)),
        ({"x_calibration": X}, DataFacts(calibration=True)),
        ({"image_test": X, "y.label_test": Y}, DataFacts(test=True)),
        ({"x_test": X, "x_validation": X, "y_validation": Y}, DataFacts()),
    ],
)
async def test_what_the_data_offers_is_told_by_its_arrays(desk: Desk, arrays: dict[str, Any], facts: DataFacts) -> None:
    assert (await desk.run(desk.dataset(**arrays))).facts == facts


async def test_unused_arrays_are_told(desk: Desk) -> None:
    findings = await desk.run(desk.dataset(x_train=X, extra=Y))
    assert any("extra" in note for note in findings.notes)


async def test_data_that_does_not_fit_is_refused_naming_the_array(desk: Desk) -> None:
    wrong = [{"x": X}, {"x_train": X[:, :3]}, {"x_train": X, "y_train": Y[:-1]}, {"x_train": np.full_like(X, np.nan)}]
    for arrays in wrong:
        error = await desk.refused(desk.dataset(**arrays))
        assert error.reason == "DATA_MISMATCH"
        assert "x" in error.message


async def test_uint8_needs_a_scale(desk: Desk) -> None:
    data = desk.dataset(x_train=X.astype(np.uint8))
    error = await desk.refused(data)
    assert (error.reason, "--scale 1/255" in error.message) == ("DATA_MISMATCH", True)
    assert (await desk.run(data, scale=[1 / 255])).facts.calibration


async def test_the_same_data_is_read_once_for_the_same_contract(desk: Desk) -> None:
    data = desk.dataset(x_train=X)
    first = await desk.run(data)
    blob = desk.folder / "store" / "tenants" / "default" / "blobs" / data
    blob.unlink()
    assert (await desk.run(data)).facts == first.facts
    desk.converter.description.contract.inputs[0].name = "other"
    assert (await desk.refused(data)).reason == "NOT_FOUND"


async def test_the_scratch_folder_is_left_empty(desk: Desk) -> None:
    await desk.run(desk.dataset(x_train=X))
    await desk.refused(desk.dataset(x_train=X[:, :3]))
    assert list((desk.folder / "scratch").iterdir()) == []


async def test_artifacts_that_are_not_there_or_anothers_are_not_found(desk: Desk) -> None:
    assert (await desk.refused(model="0" * 64)).reason == "NOT_FOUND"
    assert (await desk.refused("1" * 64)).reason == "NOT_FOUND"
    assert (await desk.refused(tenant="other")).reason == "NOT_FOUND"
    assert desk.converter.asked == 0


async def test_a_dataset_in_the_models_place_is_refused_with_the_field(desk: Desk) -> None:
    error = await desk.refused(model=desk.dataset(x_train=X))
    assert (error.reason, error.fields[0][0]) == ("INVALID_PARAMETER", "spec.model.artifact")
    error = await desk.refused(desk.model)
    assert (error.reason, error.fields[0][0]) == ("INVALID_PARAMETER", "spec.data.artifact")


async def test_code_in_the_model_is_refused_with_what_was_found(desk: Desk) -> None:
    desk.converter.description.findings.append("Lambda layer payload")
    error = await desk.refused()
    assert error.reason == "CODE_IN_MODEL"
    assert "Lambda layer payload" in error.message


async def test_what_the_converter_says_of_the_model_is_the_answer(desk: Desk) -> None:
    desk.converter.answers = [SqueezeflowError("MALFORMED_MODEL", "truncated")]
    assert (await desk.refused()).reason == "MALFORMED_MODEL"


async def test_a_converter_that_is_starting_is_waited_for(desk: Desk) -> None:
    desk.converter.answers = [GONE, GONE]
    await desk.run()
    assert desk.converter.asked == 3


async def test_a_converter_that_never_comes_is_told(desk: Desk) -> None:
    desk.checks._wait_seconds = 0.2
    desk.converter.answers = [GONE] * 99
    assert (await desk.refused()).reason == "WORKER_UNAVAILABLE"
