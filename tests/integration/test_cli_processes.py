"""The command line and the processes that it starts for a call; only the orchestrator, so no TensorFlow."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.command_line import CommandLine, processes_of, wait_until

from squeezeflow.cli.embedded import ports
from squeezeflow.cli.embedded.home import Home
from squeezeflow.cli.embedded.supervisor import Services
from squeezeflow.core.errors import SqueezeflowError


@pytest.fixture
def command(tmp_path: Path) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path / "home")
    yield line
    line.stop_all()


def test_an_artifact_goes_in_and_out_without_a_server_and_nothing_is_left_running(
    command: CommandLine, tmp_path: Path
) -> None:
    data = tmp_path / "data.npz"
    data.write_bytes(Path("tests/data/japanese_vowels.npz").read_bytes())
    put = command.run("--json", "artifacts", "put", str(data))
    assert put.returncode == 0, put.stderr
    artifact = json.loads(put.stdout)
    assert artifact["kind"] == "ARTIFACT_KIND_DATASET"
    assert int(artifact["size_bytes"]) == data.stat().st_size
    got = command.run("artifacts", "get", artifact["digest"], str(tmp_path / "back.npz"))
    assert (got.returncode, got.stdout.strip()) == (0, str(tmp_path / "back.npz"))
    assert (tmp_path / "back.npz").read_bytes() == data.read_bytes()
    assert processes_of(command.home) == []
    assert not (command.home / "endpoints.json").exists()
    assert [path.name for path in (command.home / "logs").iterdir()] == ["orchestrator.log"]


def test_two_calls_at_once_take_turns_over_one_state_folder(command: CommandLine) -> None:
    first, second = command.start("jobs", "list"), command.start("--json", "jobs", "list")
    assert first.wait(60) == 0
    assert second.wait(60) == 0
    assert json.loads(second.communicate()[0]) == {"jobs": [], "next_page_token": ""}


def test_what_is_not_there_is_code_3_and_one_line(command: CommandLine) -> None:
    done = command.run("--json", "artifacts", "get", "0" * 64)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["reason"] == "NOT_FOUND"
    assert done.stderr.startswith("NOT_FOUND: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_service_that_dies_at_its_start_is_told_with_what_it_said(command: CommandLine) -> None:
    done = command.run("--json", "jobs", "list", SQUEEZEFLOW_LINGER_SECONDS="never")
    assert done.returncode == 5
    assert done.stderr.startswith("WORKER_UNAVAILABLE: orchestrator ended at its start with exit code ")
    assert "SQUEEZEFLOW_LINGER_SECONDS=never" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "never" in json.loads(done.stdout)["error"]["metadata"]["log"]


def test_a_store_that_is_not_there_is_code_5(command: CommandLine, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    data.write_bytes(Path("tests/data/japanese_vowels.npz").read_bytes())
    url = "s3://key:secret@127.0.0.1:1/bucket?secure=false"
    done = command.run("artifacts", "put", str(data), SQUEEZEFLOW_STORE=url)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith("STORE_UNAVAILABLE: ")
    assert "secret" not in done.stderr


def test_an_empty_model_is_refused_before_anything_is_started(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty.keras").write_bytes(b"")
    done = command.run("compress", str(tmp_path / "empty.keras"))
    assert done.returncode == 3
    assert done.stderr.startswith("MALFORMED_MODEL: ")
    assert not command.home.exists()


@pytest.fixture
def orchestrator(tmp_path: Path) -> Iterator[tuple[Services, list[str]]]:
    told: list[str] = []
    home = Home(tmp_path / "home")
    with home.lock(), Services(home, ["orchestrator"], environ=os.environ, tell=told.append) as services:
        services.wait_serving(["orchestrator"])
        yield services, told


def test_a_service_that_dies_later_is_started_again_at_the_same_address(
    orchestrator: tuple[Services, list[str]], tmp_path: Path
) -> None:
    services, told = orchestrator
    address = services.addresses["orchestrator"]
    (pid,) = processes_of(tmp_path / "home")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: any("is back" in line for line in told))
    assert services.addresses["orchestrator"] == address
    assert told[0].startswith("orchestrator ended with -9: starting it again in 0.5 s")
    assert processes_of(tmp_path / "home") != [pid]
    assert services.failure is None


HOLDER = """
import os, sys, time
from pathlib import Path
from squeezeflow.cli.embedded.home import Home
from squeezeflow.cli.embedded.supervisor import Services
with Services(Home(Path(sys.argv[1])), ["orchestrator"], environ=os.environ, tell=print) as services:
    services.wait_serving(["orchestrator"])
    print("serving", flush=True)
    time.sleep(300)
"""


def test_services_end_when_the_process_that_runs_them_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "serving\n"
    assert processes_of(tmp_path)
    holder.kill()
    holder.communicate()
    wait_until(lambda: processes_of(tmp_path) == [], seconds=5)


def test_a_port_that_is_taken_is_named_with_what_to_give(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SqueezeflowError, match=f"port {port} for pruner.*--port-base"):
            ports.reserve({"converter": 0, "pruner": port})


def test_a_port_that_another_up_holds_for_its_services_is_taken_too() -> None:
    held = ports.reserve({"converter": 0})["converter"]
    try:
        with pytest.raises(SqueezeflowError, match=str(held.port)):
            ports.reserve({"converter": held.port})
    finally:
        held.close()


def test_a_held_port_is_free_for_the_service_that_shares_it() -> None:
    held = ports.reserve({"converter": 0})["converter"]
    with socket.socket() as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        service.bind(("127.0.0.1", held.port))
        service.listen(20)
        service.settimeout(5)
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", held.port), timeout=5) as caller:
                assert service.accept()[1] == caller.getsockname()
    held.close()


@pytest.mark.parametrize(
    ("base", "expected"), [(None, [7070, 7071, 7072, 7073, 7074]), (0, [0] * 5), (9000, [9000, 9001, 9002, 9003, 9004])]
)
def test_the_port_base_gives_every_service_its_port(base: int | None, expected: list[int]) -> None:
    plan = ports.port_plan(base)
    assert list(plan) == ["orchestrator", "converter", "quantizer", "pruner", "inference"]
    assert list(plan.values()) == expected


def test_a_log_that_has_grown_is_moved_away_under_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from squeezeflow.cli.embedded import processes

    monkeypatch.setattr(processes, "LOG_LIMIT", 100)
    log = tmp_path / "converter.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(6):
            writer.write(f"{number}".encode() * 120)
            processes.rotate_open(log)
        writer.write(b"last")
    contents: Callable[[str], bytes] = lambda name: (tmp_path / name).read_bytes()[:4]  # noqa: E731
    assert contents("converter.log") == b"last"
    assert [contents(f"converter.log.{number}") for number in (1, 2, 3)] == [b"5555", b"4444", b"3333"]
    assert len(list(tmp_path.iterdir())) == 4


def test_the_time_to_wait_for_a_service_that_never_serves_is_bounded(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with home.lock(), Services(home, ["orchestrator"], environ=os.environ, tell=print) as services:
        (pid,) = processes_of(home.root)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(SqueezeflowError, match="did not serve within 1 s"):
                services.wait_serving(["orchestrator"], seconds=1)
        finally:
            os.kill(pid, signal.SIGCONT)
