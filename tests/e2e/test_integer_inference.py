"""Files with integer inputs and outputs, served: fed with real values by `squeezeflow infer`, and with raw integers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.integration.command_line import CommandLine
from tests.servers.stack import Stack

from squeezeflow.client import Client
from squeezeflow.core import contracts
from squeezeflow.v1 import contract_pb2, jobs_pb2

TYPES = {"int8-io": np.int8, "uint8-io": np.uint8}


@pytest.fixture(scope="module")
def candidates(client: Client, cnn: Path, few_images: Path) -> Mapping[str, jobs_pb2.Candidate]:
    job = client.compress(cnn, data=few_images, scale=[1 / 255], recipes=["int8", *TYPES])
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED
    return {candidate.recipe: candidate for candidate in job.candidates}


def contract_of(client: Client, candidate: jobs_pb2.Candidate, folder: Path) -> contract_pb2.Contract:
    return contracts.decode(client.download(candidate.contract, folder / f"{candidate.recipe}.json"))


def golden(contract: contract_pb2.Contract) -> tuple[np.ndarray, np.ndarray]:
    """Gives the golden inputs and what the float source answers."""
    samples = [(contracts.array(s.inputs["image"]), contracts.array(s.outputs["probabilities"])) for s in
               contract.golden_samples]  # fmt: skip
    assert samples
    return tuple(np.concatenate(side) for side in zip(*samples, strict=True))  # type: ignore[return-value]


def real(values: np.ndarray, tensor: contract_pb2.TensorContract) -> np.ndarray:
    return (values.astype(np.float64) - tensor.quantization.zero_point) * tensor.quantization.scale


@pytest.mark.parametrize("recipe", TYPES)
def test_raw_integers_go_in_and_come_out_as_the_source_answers(
    client: Client, candidates: Mapping[str, jobs_pb2.Candidate], tmp_path: Path, recipe: str
) -> None:
    contract = contract_of(client, candidates[recipe], tmp_path)
    images, expected = golden(contract)
    (taken,), (given,) = contract.inputs, contract.outputs
    limits = np.iinfo(TYPES[recipe])
    steps = np.round(images / taken.quantization.scale) + taken.quantization.zero_point
    integers = np.clip(steps, limits.min, limits.max).astype(TYPES[recipe])
    answer = client.infer(candidates[recipe].artifact, {"image": integers})["probabilities"]
    assert answer.dtype == TYPES[recipe]
    np.testing.assert_allclose(real(answer, given), expected, atol=0.06)
    # The same network with float ends: the integers in it are the same.
    inside = client.infer(candidates["int8"].artifact, {"image": real(integers, taken).astype(np.float32)})
    np.testing.assert_allclose(real(answer, given), inside["probabilities"], atol=1.01 * given.quantization.scale)


@pytest.mark.parametrize("recipe", TYPES)
@pytest.mark.parametrize("stored", ["pixels", "values"])
def test_the_command_line_quantizes_what_it_sends_by_the_contract(
    client: Client,
    stack: Stack,
    candidates: Mapping[str, jobs_pb2.Candidate],
    tmp_path: Path,
    recipe: str,
    stored: str,
) -> None:
    contract = contract_of(client, candidates[recipe], tmp_path)
    images, expected = golden(contract)
    # The contract knows the affine of the job's data: bytes need no --scale. Values are past it: --scale 1.
    array, scale = (images * 255).round().astype(np.uint8), ()
    if stored == "values":
        array, scale = images, ("--scale", "1")
    np.savez(tmp_path / "samples.npz", x=array)
    client.load(recipe, candidates[recipe].artifact)
    said = CommandLine(stack.home).run("--json", "infer", recipe, "--data", str(tmp_path / "samples.npz"), *scale)
    assert said.returncode == 0, said.stderr
    (output,) = json.loads(said.stdout)["outputs"]
    answer = np.array(output["contents"]["int_contents" if recipe == "int8-io" else "uint_contents"])
    np.testing.assert_allclose(real(answer.reshape(expected.shape), contract.outputs[0]), expected, atol=0.06)
