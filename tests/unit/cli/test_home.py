from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import Timeout

from squeezeflow.cli.embedded.home import Endpoints, Home, home_of, publish, running, take, withdraw
from squeezeflow.core.errors import SqueezeflowError

HOLDER = """
import sys
from pathlib import Path
from squeezeflow.cli.embedded.home import Endpoints, Home, publish
import os
home = Home(Path(sys.argv[1]))
with home.lock():
    if sys.argv[2] == "up":
        publish(home, Endpoints({"orchestrator": "127.0.0.1:7070"}, os.getpid()))
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def holder(home: Home):
    """Starts a process that holds the lock, as an `up` or as an embedded job."""
    started = []

    def start(role: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(home.root), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_state_folder_is_the_one_named_or_the_platform_s(tmp_path):
    assert home_of({"SQUEEZEFLOW_HOME": str(tmp_path)}).root == tmp_path
    assert home_of({}).root.name == "squeezeflow"


def test_without_anyone_the_lock_is_given_and_held(home):
    with take(home, on_wait=pytest.fail), pytest.raises(Timeout):
        home.lock()
    home.lock().release()


def test_a_running_up_is_found_by_its_endpoints(home, holder):
    process = holder("up")
    assert take(home, on_wait=pytest.fail) == Endpoints({"orchestrator": "127.0.0.1:7070"}, process.pid)


def test_endpoints_of_a_process_that_was_killed_are_ignored(home, holder):
    process = holder("up")
    process.kill()
    process.wait()
    assert home.endpoints.exists()
    assert running(home) is None
    take(home, on_wait=pytest.fail).release()


def test_endpoints_whose_process_number_is_another_s_by_now_are_ignored(home):
    home.root.mkdir()
    publish(home, Endpoints({"orchestrator": "127.0.0.1:7070"}, os.getppid()))
    assert running(home) is None


def test_an_embedded_job_is_waited_for_with_one_notice(home, holder):
    process, notices = holder("job"), []
    threading.Timer(1.0, process.kill).start()
    with take(home, on_wait=notices.append):
        assert process.poll() is not None
    assert len(notices) == 1
    assert str(home.root) in notices[0]


def test_endpoints_are_published_as_the_interface_says_and_withdrawn(home):
    home.root.mkdir()
    publish(home, Endpoints({"orchestrator": "127.0.0.1:7070", "converter": "127.0.0.1:7071"}, 12))
    assert json.loads(home.endpoints.read_text()) == {
        "orchestrator": "127.0.0.1:7070",
        "converter": "127.0.0.1:7071",
        "pid": 12,
    }
    withdraw(home)
    withdraw(home)
    assert list(home.root.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"orchestrator": 3, "pid": 1}', "{}"])
def test_a_damaged_endpoints_file_is_ignored(home, content):
    home.root.mkdir()
    home.endpoints.write_text(content)
    assert running(home) is None


def test_a_state_folder_that_cannot_be_made_is_refused_with_the_variable_to_set(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SqueezeflowError, match="SQUEEZEFLOW_HOME"):
        take(Home(tmp_path / "file" / "home"), on_wait=pytest.fail)
