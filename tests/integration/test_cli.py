"""The command line over real services on real images: `up`, and jobs that bring their own services."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models
from tests.integration.command_line import CommandLine, processes_of, wait_until

from squeezeflow.client import Client

FASHION = Path(__file__).parents[1] / "data" / "fashion_mnist.npz"
SERVICES = ("orchestrator", "converter", "quantizer", "pruner", "inference")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a compiled model, job data and data for `infer`."""
    folder = tmp_path_factory.mktemp("files")
    models.tf_keras_file(folder, compiled=True)
    with np.load(FASHION) as source:
        few = {name: source[name][:400] for name in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(folder / "data.npz", classes=np.array([f"kind-{i}" for i in range(10)]), **few)
    np.savez(folder / "sample.npz", x=few["x_test"][:5])
    return folder


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """All services, started by `squeezeflow up`."""
    command = CommandLine(tmp_path_factory.mktemp("up") / "home")
    process = command.start("up", "--port-base", "0")
    wait_until(lambda: process.poll() is not None or (command.home / "endpoints.json").exists(), seconds=240)
    assert process.poll() is None, process.communicate()[1]
    yield command
    command.stop_all()


def endpoints(command: CommandLine) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((command.home / "endpoints.json").read_text())
    return content


@pytest.fixture(scope="module")
def job(up: CommandLine, files: Path) -> dict[str, Any]:
    """The document of one job over two recipes."""
    done = up.run(
        *("--json", "compress", str(files / "model.keras"), "--data", str(files / "data.npz"), "--scale", "1/255"),
        *("--recipe", "dynamic", "--recipe", "int8", "--out", str(files / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert "int8: quantize succeeded" in done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_endpoints_name_every_service_and_the_process(up: CommandLine) -> None:
    assert tuple(endpoints(up)) == (*SERVICES, "pid")
    os.kill(endpoints(up)["pid"], 0)


def test_a_second_up_uses_the_running_one(up: CommandLine) -> None:
    done = up.run("--json", "up")
    assert (done.returncode, json.loads(done.stdout)) == (0, endpoints(up))
    assert "running already" in done.stderr


def test_compress_gives_the_final_job_as_one_document(job: dict[str, Any]) -> None:
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert [(c["recipe"], c["requested"]) for c in job["candidates"]] == [
        ("float32", False),
        ("dynamic", True),
        ("int8", True),
    ]
    for candidate in job["candidates"]:
        assert {"accuracy", "latency_p50_ms"} <= set(candidate["metrics"])
        assert candidate["invariants"]
        assert all(invariant["passed"] for invariant in candidate["invariants"])


def test_compress_writes_a_file_for_every_candidate(job: dict[str, Any], files: Path) -> None:
    assert sorted(path.name for path in (files / "out").iterdir()) == [
        "dynamic.tflite",
        "float32.tflite",
        "int8.tflite",
    ]
    for candidate in job["candidates"]:
        content = (files / "out" / f"{candidate['recipe']}.tflite").read_bytes()
        assert candidate["sizes"] == {
            "raw_bytes": len(content),
            "deflated_bytes": len(zlib.compress(content, 9)),
        }


def test_jobs_are_listed_shown_and_watched_to_their_end(up: CommandLine, job: dict[str, Any]) -> None:
    listed = json.loads(up.run("jobs", "list", "--json").stdout)
    assert job["id"] in [entry["id"] for entry in listed["jobs"]]
    assert json.loads(up.run("jobs", "get", job["id"], "--json").stdout) == job
    watched = up.run("jobs", "watch", job["id"])
    assert watched.returncode == 0
    for word in ("float32", "dynamic", "int8", "accuracy", "invariants"):
        assert word in watched.stdout


def test_a_job_that_has_ended_stays_as_it_is_when_cancelled(up: CommandLine, job: dict[str, Any]) -> None:
    assert json.loads(up.run("--json", "jobs", "cancel", job["id"]).stdout)["state"] == "JOB_STATE_SUCCEEDED"


def test_a_job_whose_only_recipe_lacks_data_is_code_3_with_its_document(up: CommandLine, files: Path) -> None:
    done = up.run("--json", "compress", str(files / "model.keras"), "--recipe", "int8")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("DATA_MISSING: ")
    failed = json.loads(done.stdout)
    assert failed["state"] == "JOB_STATE_FAILED"
    assert failed["candidates"][1]["error"]["reason"] == "DATA_MISSING"


def test_images_without_a_scale_are_refused_with_the_option_to_give(up: CommandLine, files: Path) -> None:
    done = up.run("compress", str(files / "model.keras"), "--data", str(files / "data.npz"), "--recipe", "dynamic")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("DATA_MISMATCH: ")
    assert "--scale 1/255" in done.stderr


def test_two_recipes_of_one_name_are_refused(up: CommandLine, files: Path) -> None:
    done = up.run("compress", str(files / "model.keras"), "--recipe", "dynamic", "--recipe", "dynamic")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("INVALID_PARAMETER: ")


def test_ctrl_c_cancels_a_job_on_a_server_that_goes_on(up: CommandLine, files: Path) -> None:
    process = up.start(
        *("--json", "compress", str(files / "model.keras"), "--data", str(files / "data.npz"), "--scale", "1/255"),
        *("--recipe", "prune", "--epochs", "900"),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("prune: prune running"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("CANCELLED: ")
    cancelled = json.loads(out)
    assert cancelled["state"] == "JOB_STATE_CANCELLED"
    assert json.loads(up.run("--json", "jobs", "get", cancelled["id"]).stdout)["state"] == "JOB_STATE_CANCELLED"
    assert up.run("jobs", "watch", cancelled["id"]).returncode == 130


def test_inspect_tells_layers_of_a_keras_model_and_operators_of_a_file(
    up: CommandLine, job: dict[str, Any], files: Path
) -> None:
    keras = up.run("inspect", str(files / "model.keras"))
    assert keras.returncode == 0, keras.stderr
    for word in ("depthwise", "DepthwiseConv2D", "prune"):
        assert word in keras.stdout
    digest = next(c["artifact"] for c in job["candidates"] if c["recipe"] == "int8")
    described = json.loads(up.run("--json", "inspect", digest).stdout)
    assert described["format"] == "TFLite"
    assert "CONV_2D" in {operator["name"] for operator in described["operators"]}
    assert "CONV_2D" in up.run("inspect", digest).stdout


def test_a_served_candidate_answers_with_labels_and_as_a_document(
    up: CommandLine, job: dict[str, Any], files: Path
) -> None:
    served = up.run("serve", str(files / "out" / "int8.tflite"), "--name", "shoes")
    assert served.returncode == 0, served.stderr
    assert endpoints(up)["inference"] in served.stdout
    said = up.run("infer", "shoes", "--data", str(files / "sample.npz"))
    assert said.returncode == 0, said.stderr
    assert len(said.stdout.splitlines()) == 5
    assert all("kind-" in line for line in said.stdout.splitlines())
    response = json.loads(up.run("--json", "infer", "shoes", "--data", str(files / "sample.npz")).stdout)
    assert response["outputs"][0]["shape"] == ["5", "10"]
    values = np.array(response["outputs"][0]["contents"]["fp32_contents"]).reshape(5, 10)
    labels = [line.split()[1] for line in said.stdout.splitlines()]
    assert labels == [f"kind-{index}" for index in values.argmax(axis=1)]


def test_the_python_client_reaches_the_services_by_their_addresses(up: CommandLine, job: dict[str, Any]) -> None:
    where = endpoints(up)
    with Client(where["orchestrator"], converter=where["converter"], inference=where["inference"]) as client:
        assert client.get_job(job["id"]).id == job["id"]
        digest = job["candidates"][0]["artifact"]
        assert client.describe(digest).format == "TFLite"
        (name,) = [tensor.name for tensor in client.model_metadata(digest).inputs]
        outputs = client.infer(digest, {name: np.zeros((2, 28, 28, 1), np.float32)})
        assert [value.shape for value in outputs.values()] == [(2, 10)]
        assert client.lineage(digest)[0].technique == "convert"


def test_inference_that_is_killed_comes_back_where_it_was(up: CommandLine, files: Path) -> None:
    address = endpoints(up)["inference"]
    for pid in processes_of(up.home / "work" / "inference"):
        with contextlib.suppress(ProcessLookupError):  # a child that ended with its parent
            os.kill(pid, signal.SIGKILL)

    def served_again() -> bool:
        return up.run("serve", str(files / "out" / "int8.tflite"), "--name", "again").returncode == 0

    wait_until(served_again)
    assert endpoints(up)["inference"] == address


def test_up_that_is_told_to_stop_leaves_nothing(up: CommandLine) -> None:
    process = up.processes[0]
    assert len(processes_of(up.home)) >= len(SERVICES)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "inference is back" in err
    assert processes_of(up.home) == []
    assert not (up.home / "endpoints.json").exists()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[CommandLine]:
    command = CommandLine(tmp_path / "home")
    yield command
    command.stop_all()


def compress_alone(command: CommandLine, files: Path) -> subprocess.Popen[str]:
    return command.start("--json", "compress", str(files / "model.keras"), "--recipe", "float32")


def test_a_job_without_a_server_starts_what_it_needs_and_leaves_nothing(own: CommandLine, files: Path) -> None:
    process = compress_alone(own, files)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (candidate,) = json.loads(out)["candidates"]
    assert (candidate["recipe"], candidate["requested"]) == ("float32", True)
    assert "accuracy" not in candidate["metrics"]
    assert {path.stem for path in (own.home / "logs").iterdir()} == {"orchestrator", "converter", "inference"}
    assert processes_of(own.home) == []


def test_ctrl_c_ends_a_job_and_its_services(own: CommandLine, files: Path) -> None:
    process = compress_alone(own, files)
    wait_until(lambda: len(processes_of(own.home)) >= 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("CANCELLED: ")
    assert json.loads(out)
    assert processes_of(own.home) == []


def test_a_killed_job_takes_its_services_along(own: CommandLine, files: Path) -> None:
    process = compress_alone(own, files)
    wait_until(lambda: len(processes_of(own.home)) >= 3)
    process.kill()
    process.communicate()
    wait_until(lambda: processes_of(own.home) == [], seconds=30)
    assert not (own.home / "endpoints.json").exists()
    assert own.run("jobs", "list").returncode == 0
