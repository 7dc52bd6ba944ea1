"""Real models of every kind that the first techniques take, through the whole stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from squeezeflow.client import Client
from squeezeflow.v1 import jobs_pb2, technique_pb2

DATA = Path(__file__).parents[1] / "data"


def succeeded(job: jobs_pb2.Job) -> dict[str, jobs_pb2.Candidate]:
    failed = {c.recipe: (c.error.reason, c.error.message) for c in job.candidates if c.error.reason}
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, failed
    assert not failed
    for candidate in job.candidates:
        assert all(invariant.passed for invariant in candidate.invariants)
        assert {invariant.name for invariant in candidate.invariants} >= {"finite", "alive", "close"}
        assert candidate.metrics["latency_p50_ms"].value > 0
    return {candidate.recipe: candidate for candidate in job.candidates}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random 64×64 images in [-1, 1]: not faces, but numbers of the right range."""
    path = tmp_path_factory.mktemp("faces") / "faces.npz"
    generator = np.random.default_rng(0)
    np.savez(path, x_train=generator.uniform(-1, 1, (64, 64, 64, 1)).astype(np.float32))
    return path


@pytest.mark.parametrize("name", ["emotion_model.hdf5", "emotion_model_keras3.keras"])
def test_a_published_keras_model_becomes_int8(client: Client, faces: Path, name: str) -> None:
    done = succeeded(client.compress(DATA / "models" / "fer" / name, data=faces, recipes=["int8"]))
    assert done["int8"].sizes.raw_bytes < 0.5 * done["float32"].sizes.raw_bytes
    assert {invariant.name for invariant in done["int8"].invariants} >= {"integer"}
    assert done["float32"].metrics["max_abs_diff"].value < 1e-4


def test_a_published_saved_model_that_is_not_keras_converts_to_what_its_authors_ship(
    client: Client, tmp_path: Path
) -> None:
    done = succeeded(client.compress(DATA / "models" / "basic_pitch" / "nmp", recipes=["dynamic"]))
    shipped = (DATA / "models" / "basic_pitch" / "nmp.tflite").stat().st_size
    # Ours leaves out what the converter writes beside the model.
    assert 0.9 * shipped < done["float32"].sizes.raw_bytes <= shipped


def test_each_signature_of_a_saved_model_is_a_model_of_its_own(client: Client, tmp_path: Path) -> None:
    model = models.two_signatures(tmp_path)
    for signature in ("scale", "swap"):
        done = succeeded(client.compress(model, recipes=["float32"], signature=signature))
        assert done["float32"].requested


def test_two_inputs_of_one_shape_keep_their_names_from_the_data_to_inference(client: Client, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        f"{name}_{split}": generator.normal(scale, 1, (64, 6)).astype(np.float32)
        for split in ("train", "test")
        for name, scale in (("zeta", 0), ("alpha", 3))
    }
    data = tmp_path / "two.npz"
    np.savez(data, **arrays)
    done = succeeded(client.compress(models.two_inputs_file(tmp_path), data=data, recipes=["int8"]))
    outputs = client.infer(
        done["float32"].artifact, {"alpha": arrays["alpha_test"][:1], "zeta": arrays["zeta_test"][:1]}
    )
    swapped = client.infer(
        done["float32"].artifact, {"alpha": arrays["zeta_test"][:1], "zeta": arrays["alpha_test"][:1]}
    )
    assert set(outputs) == {"second", "first"}
    assert any(not np.allclose(outputs[name], swapped[name]) for name in outputs)


def test_pruning_keeps_its_zeros_into_the_int8_file_and_exports_what_it_pruned(
    client: Client, cnn: Path, few_images: Path, tmp_path: Path
) -> None:
    exports = [technique_pb2.Export(format=technique_pb2.Export.FORMAT_SAVED_MODEL)]
    job = client.compress(
        cnn, data=few_images, scale=[1 / 255], recipes=["prune", "prune-int8"], exports=exports,
        fine_tune=technique_pb2.FineTune(epochs=1),
    )  # fmt: skip
    done = succeeded(job)
    for recipe in ("prune", "prune-int8"):
        # Once by the step that pruned, once more in the final file.
        assert [invariant.name for invariant in done[recipe].invariants].count("sparsity") == 2
        assert done[recipe].sizes.deflated_bytes < 0.6 * done["float32"].sizes.deflated_bytes
        (digest,) = done[recipe].exports.values()
        assert (client.download(digest, tmp_path / recipe) / "saved_model.pb").exists()
    prunes = [step for recipe in ("prune", "prune-int8") for step in done[recipe].steps if step.technique == "prune"]
    assert prunes[0].action == prunes[1].action, "the shared prefix ran twice"
    skipped = {layer.layer: layer.detail for layer in prunes[0].layers if not layer.applied}
    assert "depthwise" in skipped
    assert skipped["depthwise"]


def test_what_a_file_came_from_can_be_told(client: Client, cnn: Path) -> None:
    done = succeeded(client.compress(cnn, recipes=["dynamic"]))
    (record, *_) = client.lineage(done["dynamic"].artifact)
    assert record.technique == "quantize"
    assert {entry.name: entry.digest for entry in record.inputs}["model"] == client.upload(cnn).digest
    assert record.toolchain["tensorflow"]
