from __future__ import annotations

import json
import subprocess
import sys

import pytest

from squeezeflow.cli.__main__ import run


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SQUEEZEFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SQUEEZEFLOW_SERVER", raising=False)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"")
    return str(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("compress", "MODEL"),
        ("compress nowhere.keras", "nowhere.keras"),
        ("compress MODEL --data nowhere.npz", "nowhere.npz"),
        ("compress MODEL --recipe int9", "'int8'?"),
        ("compress MODEL --recipe nowhere.json", "nowhere.json"),
        ("compress MODEL --epochs many", "--epochs"),
        ("compress MODEL --scale one", "1/255"),
        ("compress MODEL --export onnx --out d", "onnx"),
        ("compress MODEL --faster", "--faster"),
        ("melt", "melt"),
        ("inspect nowhere.tflite", "nowhere.tflite"),
        ("serve nowhere.tflite --name n", "nowhere.tflite"),
        ("serve MODEL", "--name"),
        ("infer n --data nowhere.npz", "nowhere.npz"),
        ("artifacts put MODEL --kind onnx", "tflite"),
        ("up --port-base 70000", "--port-base"),
    ],
)
def test_a_usage_error_is_one_line_on_stderr_and_code_2(line, told, model, capsys):
    assert run([model if word == "MODEL" else word for word in line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.split(":")[0] in ("INVALID_PARAMETER", "NOT_FOUND")
    assert told in err


def test_with_json_a_usage_error_is_a_document_too(capsys):
    assert run(["compress", "nowhere.keras", "--json"]) == 2
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"reason", "message", "metadata"}
    assert err.startswith(document["error"]["reason"] + ": ")


@pytest.mark.parametrize("setting", ["prune.sparsty=0.5", "prune.sparsity=2", "quantize.seed=1", "melt.point=3"])
def test_a_setting_that_is_wrong_is_refused_with_code_3_and_starts_nothing(setting, model, tmp_path, capsys):
    assert run(["compress", model, "--recipe", "prune", "--set", setting]) == 3
    assert capsys.readouterr().err.startswith("INVALID_PARAMETER: ")
    assert not (tmp_path / "home").exists()


def test_a_server_that_is_not_there_is_code_5(capsys):
    assert run(["jobs", "list", "--server", "127.0.0.1:1"]) == 5
    assert capsys.readouterr().err.startswith("WORKER_UNAVAILABLE: ")


def test_help_is_quick_to_import():
    """Nothing of gRPC, numpy, TensorFlow or the store is loaded before a command runs."""
    code = (
        "import sys; from squeezeflow.cli.__main__ import run; run(['--help']);"
        "print([m for m in ('grpc', 'numpy', 'tensorflow', 'minio', 'dbos', 'ai_edge_litert') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "compress" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_client_and_the_command_line_need_neither_tensorflow_nor_a_store_library():
    code = (
        "import sys; import squeezeflow.client;"
        "from squeezeflow.cli import artifacts, compress, infer, inspect, jobs, serve, up, session, progress, tables;"
        "print([m for m in ('tensorflow', 'minio', 'dbos', 'ai_edge_litert', 'urllib3', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
