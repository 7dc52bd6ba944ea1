"""What a client can get wrong, through the whole stack: the reason, what the message names, and that nothing ran."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests import models
from tests.servers.stack import Stack

from squeezeflow.client import Client
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.rpc.channels import open_sync_channel
from squeezeflow.rpc.errors import from_rpc_error
from squeezeflow.v1 import artifact_pb2, artifacts_pb2, artifacts_pb2_grpc, jobs_pb2, technique_pb2

SCALE = [1 / 255]


def refusal(action: Callable[[], Any]) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        action()
    return caught.value


def outcome(client: Client, model: Path, **options: Any) -> tuple[str, str]:
    """Gives reason and message of a job that must not succeed, whether it is refused at once or fails later."""
    try:
        job = client.compress(model, **options)
    except SqueezeflowError as error:
        return error.reason, error.message
    assert job.state == jobs_pb2.JOB_STATE_FAILED
    return job.error.reason, job.error.message


def reason_of(client: Client, model: Path) -> str:
    """Gives the reason of a refusal; empty where the model is taken."""
    try:
        return client.compress(model, recipes=["dynamic"]).error.reason
    except SqueezeflowError as error:
        return error.reason


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


IMAGES = np.zeros((64, 28, 28), np.uint8)
LABELS = np.arange(64) % 10


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder, marker: _empty(folder / "model.keras"), "MALFORMED_MODEL"),
        (
            lambda folder, marker: models.truncated(models.tf_keras_file(folder), folder / "cut.keras"),
            "MALFORMED_MODEL",
        ),
        (lambda folder, marker: _flipped(models.tf_keras_file(folder), folder / "bit.keras"), "MALFORMED_MODEL"),
        (lambda folder, marker: models.lambda_layer(folder, marker), "CODE_IN_MODEL"),
        (lambda folder, marker: models.lambda_layer(folder, marker, name="lambda.h5"), "CODE_IN_MODEL"),
        (lambda folder, marker: models.gadget_config(folder, marker), "CODE_IN_MODEL"),
        (lambda folder, marker: models.writes_file_at_load(folder, marker), "CODE_IN_MODEL"),
        (lambda folder, marker: models.string_input(folder), "UNSUPPORTED_INPUT"),
        (lambda folder, marker: models.needs_flex(folder), "UNSUPPORTED_OP"),
        (lambda folder, marker: models.gives_nan(folder), "NON_FINITE_OUTPUT"),
    ],
    ids=["empty", "truncated", "flipped", "lambda", "lambda-h5", "gadget", "write-at-load", "text", "flex", "nan"],
)
def test_a_model_that_cannot_be_taken_is_refused_with_its_reason_and_runs_nothing(
    client: Client, tmp_path: Path, make: Callable[[Path, Path], Path], reason: str
) -> None:
    marker = tmp_path / "it-ran"
    model = make(tmp_path, marker)
    assert outcome(client, model, recipes=["dynamic"])[0] == reason
    assert not marker.exists()


def _empty(path: Path) -> Path:
    path.touch()
    return path


def _cut(source: Path, target: Path) -> Path:
    return models.truncated(source, target)


def _flipped(source: Path, target: Path) -> Path:
    return models.damaged(source, target, offset=source.stat().st_size // 2)


@pytest.mark.parametrize(
    ("arrays", "options", "reason", "named"),
    [
        ({"x_train": IMAGES, "y_train": LABELS}, {}, "DATA_MISMATCH", "--scale 1/255"),
        ({"x_train": IMAGES[:, :20], "y_train": LABELS}, {"scale": SCALE}, "DATA_MISMATCH", "x_train"),
        ({"x_train": IMAGES, "y_train": LABELS[:9]}, {"scale": SCALE}, "DATA_MISMATCH", "y_train"),
        ({"x_train": IMAGES, "y_train": LABELS + 5}, {"scale": SCALE}, "DATA_MISMATCH", "y_train"),
        ({"x": IMAGES, "y": LABELS}, {"scale": SCALE}, "DATA_MISMATCH", "_train"),
        ({"x_train": np.full((64, 28, 28), np.nan, np.float32), "y_train": LABELS}, {}, "DATA_MISMATCH", "x_train"),
        ({"x_train": IMAGES.astype("U3"), "y_train": LABELS}, {"scale": SCALE}, "DATA_MISMATCH", "x_train"),
        ({"x_test": IMAGES, "y_test": LABELS}, {"scale": SCALE}, "DATA_MISSING", "train"),
    ],
    ids=["no-scale", "shape", "count", "labels", "no-suffix", "nan", "text", "no-train"],
)
def test_data_that_does_not_fit_is_refused_naming_the_array_and_what_to_change(
    client: Client, cnn: Path, tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], reason: str, named: str
) -> None:
    got = outcome(client, cnn, data=npz(tmp_path, **arrays), recipes=["prune"], **options)
    assert got[0] == reason
    assert named in got[1]


@pytest.mark.parametrize("recipe", ["int8", "prune"])
def test_a_recipe_without_the_data_it_needs_says_so(client: Client, cnn: Path, recipe: str) -> None:
    assert outcome(client, cnn, recipes=[recipe])[0] == "DATA_MISSING"


def test_a_parameter_out_of_range_is_refused_with_its_path(client: Client, cnn: Path) -> None:
    recipe = jobs_pb2.Recipe(name="too-much", techniques=[technique_pb2.Technique(prune={"sparsity": 1.5}), _convert()])
    error = refusal(lambda: client.compress(cnn, recipes=[recipe]))
    assert error.reason == "INVALID_PARAMETER"
    assert "spec.recipes[0].techniques[0].prune.sparsity" in dict(error.fields)


def _convert() -> technique_pb2.Technique:
    return technique_pb2.Technique(convert={})


def test_a_recipe_that_does_not_end_in_tflite_is_refused(client: Client, cnn: Path) -> None:
    recipe = jobs_pb2.Recipe(name="open-end", techniques=[technique_pb2.Technique(prune={})])
    assert refusal(lambda: client.compress(cnn, recipes=[recipe])).reason == "INVALID_PARAMETER"


def test_a_signature_that_is_not_there_is_refused_with_those_that_are(client: Client, tmp_path: Path) -> None:
    model = models.two_signatures(tmp_path)
    for signature in ("", "stretch"):
        reason, message = outcome(client, model, recipes=["dynamic"], signature=signature)
        assert reason == "INVALID_PARAMETER"
        assert "scale" in message
        assert "swap" in message


def test_a_digest_that_does_not_exist_or_is_anothers_is_not_found(client: Client, stack: Stack, cnn: Path) -> None:
    digest = client.upload(cnn).digest
    other = stack.client(tenant="other")
    spec = jobs_pb2.JobSpec(model={"artifact": digest})
    for attempt in (lambda: other.create_job(spec), lambda: other.get_artifact(digest)):
        assert refusal(attempt).reason == "NOT_FOUND"
    assert refusal(lambda: client.create_job(jobs_pb2.JobSpec(model={"artifact": "0" * 64}))).reason == "NOT_FOUND"


def test_a_keras_3_layer_that_cannot_be_trained_is_named(client: Client, tmp_path: Path, few_images: Path) -> None:
    import keras

    inputs = keras.Input((28, 28, 1), name="image")
    dense = keras.layers.SpectralNormalization(keras.layers.Dense(10, activation="softmax"), name="spectral")
    model = tmp_path / "spectral.keras"
    keras.Model(inputs, dense(keras.layers.Flatten()(inputs))).save(model)
    reason, message = outcome(client, model, data=few_images, scale=SCALE, recipes=["prune"])
    assert reason == "UNSUPPORTED_INPUT"
    assert "spectral" in message


def upload(stack: Stack, header: dict[str, Any], *chunks: bytes) -> artifact_pb2.Artifact:
    stub = artifacts_pb2_grpc.ArtifactsStub(open_sync_channel(stack.endpoints["orchestrator"]))
    messages = [artifacts_pb2.WriteArtifactRequest(header=header)]
    messages += [artifacts_pb2.WriteArtifactRequest(chunk=chunk) for chunk in chunks]
    try:
        return stub.WriteArtifact(iter(messages), timeout=30)
    except grpc.RpcError as error:
        raise from_rpc_error(error, "orchestrator") from error


def tar_of(name: str, content: bytes = b"x", *, size: int | None = None, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Gives a tar of one entry; `size` is what its header claims."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, len(content) if size is None else size
    entry.linkname = "/etc/passwd" if kind == tarfile.SYMTYPE else ""
    return entry.tobuf(tarfile.GNU_FORMAT) + content.ljust(tarfile.BLOCKSIZE, b"\0") + bytes(2 * tarfile.BLOCKSIZE)


@pytest.mark.parametrize(
    "tar",
    [
        tar_of("../climbs"),
        tar_of("/absolute"),
        tar_of("link", b"", kind=tarfile.SYMTYPE),
        tar_of("grows", size=1 << 40),
        b"no tar at all" * 100,
    ],
    ids=["climbs", "absolute", "symlink", "inflates", "noise"],
)
def test_a_tar_that_climbs_links_or_inflates_is_refused(stack: Stack, client: Client, tar: bytes) -> None:
    header = {"kind": artifact_pb2.ARTIFACT_KIND_SAVED_MODEL, "size_bytes": len(tar), "digest": "1" * 64}
    assert refusal(lambda: upload(stack, header, tar)).reason == "MALFORMED_MODEL"
    assert refusal(lambda: client.get_artifact("1" * 64)).reason == "NOT_FOUND"


def test_bytes_that_are_not_what_was_announced_never_become_visible(stack: Stack, client: Client) -> None:
    header = {"kind": artifact_pb2.ARTIFACT_KIND_TFLITE, "size_bytes": 8, "digest": "2" * 64}
    assert refusal(lambda: upload(stack, header, b"12345678")).reason == "DIGEST_MISMATCH"
    for chunks in ([b"1234"], [b"123456789"]):
        assert refusal(lambda chunks=chunks: upload(stack, header, *chunks)).reason in (
            "DIGEST_MISMATCH",
            "INVALID_PARAMETER",
        )
    assert refusal(lambda: client.get_artifact("2" * 64)).reason == "NOT_FOUND"


def test_a_flipped_bit_in_a_stored_blob_is_told_and_not_served(
    stack: Stack, client: Client, cnn: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.keras"
    copy.write_bytes(cnn.read_bytes() + b"\0")
    digest = client.upload(copy).digest
    (blob,) = (path for path in stack.home.rglob(digest) if path.parent.name == "blobs")
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert refusal(lambda: client.download(digest, tmp_path / "back.keras")).reason == "DIGEST_MISMATCH"
    assert not (tmp_path / "back.keras").exists()
    assert refusal(lambda: client.create_job(jobs_pb2.JobSpec(model={"artifact": digest}))).reason == "DIGEST_MISMATCH"


def test_no_flipped_bit_in_the_structure_of_a_model_stops_the_services(
    client: Client, cnn: Path, tmp_path: Path, few_images: Path
) -> None:
    source = models.saved_model(tmp_path / "good")
    graph = (source / "saved_model.pb").read_bytes()
    for number in range(4):
        model = tmp_path / f"bad-{number}"
        model.mkdir()
        for path in source.rglob("*"):
            if path.is_file():
                target = model / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        models.damaged(source / "saved_model.pb", model / "saved_model.pb", offset=len(graph) * (number + 1) // 6)
        assert reason_of(client, model) in (
            "",
            "MALFORMED_MODEL",
            "CODE_IN_MODEL",
            "UNSUPPORTED_INPUT",
            "UNSUPPORTED_OP",
        )
    assert client.compress(cnn, recipes=["dynamic"]).state == jobs_pb2.JOB_STATE_SUCCEEDED
