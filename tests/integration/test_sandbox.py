"""The sandbox with real processes: everything a step can do to its process, and what its caller is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import Limits, Sandbox

HERE = Path(__file__).parent
ENV = {"PYTHONPATH": str(HERE)}
GENEROUS = Limits(wall_seconds=30, memory_mib=1000)


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with Sandbox(preload=["sandbox_steps"], env=ENV, workdir=tmp_path / "scratch") as sandbox:
        yield sandbox


async def failure(sandbox: Sandbox, entry: str, payload: dict[str, Any], limits: Limits = GENEROUS) -> SqueezeflowError:
    with pytest.raises(SqueezeflowError) as caught:
        await sandbox.run(f"sandbox_steps:{entry}", payload, limits=limits)
    return caught.value


def alive(pid: int) -> bool:
    """Whether a process still runs; one that is dead and only waits for its parent to look does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rindex(")") + 2] not in "ZX"


def server_of(sandbox: Sandbox) -> int:
    assert sandbox.server_pid is not None
    return sandbox.server_pid


async def until(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def descendants(pid: int) -> list[int]:
    """The processes below one, as far as they can be seen: any of them may end, and be gone, while this looks."""
    children: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            children += [int(n) for n in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


class TestRun:
    async def test_a_run_gives_the_value_and_what_it_took(self, sandbox: Sandbox) -> None:
        result = await sandbox.run("sandbox_steps:hold_memory", {"mib": 100}, limits=GENEROUS)
        assert result.value == {"size": 100 << 20}
        assert 100 < result.peak_memory_mib < 300
        assert 0 < result.seconds < 30

    async def test_every_run_has_a_fresh_process_of_its_own(self, sandbox: Sandbox) -> None:
        runs = [(await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value for _ in range(4)]
        assert len({run["pid"] for run in runs}) == 4
        assert {run["parent"] for run in runs} == {sandbox.server_pid}
        assert all(run["state"] == {} for run in runs)

    async def test_a_child_is_settled_in_its_own_group_and_folder(self, sandbox: Sandbox, tmp_path: Path) -> None:
        told = (await sandbox.run("sandbox_steps:who", {"a": [1, None]}, limits=GENEROUS)).value
        assert told["group"] == told["pid"]
        assert Path(told["folder"]).is_relative_to(tmp_path)
        assert told["interrupts_ignored"]
        assert told["terminates"]
        assert told["score"] == "1000"
        assert told["payload"] == {"a": [1, None]}

    async def test_temporary_files_that_a_child_leaves_go_with_it(self, sandbox: Sandbox) -> None:
        left = (await sandbox.run("sandbox_steps:leave_temporary_files", {}, limits=GENEROUS)).value["left"]
        assert len(left) == 2
        assert await until(lambda: not any(Path(path).exists() for path in left))

    async def test_a_child_holds_no_files_of_the_fork_server(self, sandbox: Sandbox, tmp_path: Path) -> None:
        told = (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value
        log = str(tmp_path)
        kinds = ["log" if path.startswith(log) else path for path in told["open"] if not path.startswith("/proc/")]
        assert kinds == ["/dev/null", "log", "log", "socket"]

    async def test_the_environment_reaches_the_child(self, tmp_path: Path) -> None:
        async with Sandbox(preload=[], env={**ENV, "SANDBOX_FLAG": "set"}, workdir=tmp_path) as sandbox:
            assert (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value["flag"] == "set"

    async def test_runs_side_by_side_do_not_mix(self, sandbox: Sandbox) -> None:
        runs = (sandbox.run("sandbox_steps:who", {"n": n}, limits=GENEROUS) for n in range(6))
        values = [result.value for result in await asyncio.gather(*runs)]
        assert [value["payload"] for value in values] == [{"n": n} for n in range(6)]
        assert len({value["pid"] for value in values}) == 6

    async def test_fifty_runs_leave_no_zombie_no_open_file_and_no_folder(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)
        (scratch,) = (tmp_path / "scratch").iterdir()

        def settled() -> tuple[int, int, int, int]:
            files = (len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), server_of(sandbox)))
            return *files, len(descendants(server_of(sandbox))), len(list(scratch.iterdir()))

        await asyncio.sleep(0.5)
        before = settled()
        for n in range(50):
            if n % 10 == 0:
                await failure(sandbox, "abort", {})
            else:
                await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)
        assert await until(lambda: settled() == before), (before, settled())
        assert before[2:] == (1, 3)  # one spare; its folder, its log, the server's log


class TestProgress:
    async def test_reports_are_thinned_out_and_the_last_one_arrives(self, sandbox: Sandbox) -> None:
        heard: list[tuple[int, bool]] = []
        result = await sandbox.run(
            "sandbox_steps:report_many",
            {"seconds": 1},
            limits=GENEROUS,
            on_progress=lambda value: heard.append(
                (value["count"], threading.current_thread() is threading.main_thread())
            ),
        )
        assert result.value["count"] > 1000
        assert 3 <= len(heard) <= 25
        assert heard[-1][0] == result.value["count"]
        assert all(on_loop for _, on_loop in heard)

    async def test_the_newest_report_arrives_while_the_step_is_silent(self, sandbox: Sandbox) -> None:
        heard: list[int] = []
        run = asyncio.create_task(
            sandbox.run(
                "sandbox_steps:report_many",
                {"seconds": 0.2, "then_silent": 20},
                limits=GENEROUS,
                on_progress=lambda value: heard.append(value["count"]),
            )
        )
        await asyncio.sleep(0.5)
        count = len(heard)
        assert await until(lambda: count > 1 and len(heard) == count, 1)
        assert not run.done()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    async def test_an_error_of_the_listener_reaches_the_caller_and_ends_the_child(self, sandbox: Sandbox) -> None:
        pids: list[int] = []

        def listen(value: dict[str, Any]) -> None:
            pids.append(value["pid"])
            raise LookupError("listener")

        with pytest.raises(LookupError, match="listener"):
            await sandbox.run("sandbox_steps:hang", {"how": "c"}, limits=GENEROUS, on_progress=listen)
        assert not alive(pids[0])

    async def test_a_child_that_floods_does_not_keep_the_parent_from_its_work(self, sandbox: Sandbox) -> None:
        heard: list[dict[str, Any]] = []
        run = asyncio.create_task(
            sandbox.run("sandbox_steps:flood", {"seconds": 1}, limits=GENEROUS, on_progress=heard.append)
        )
        turns = 0
        while len(heard) < 40:
            await asyncio.sleep(0.005)
            turns += 1
        assert turns > 10
        run.cancel()
        await asyncio.wait({run})


class TestErrors:
    async def test_a_typed_error_comes_out_as_it_is(self, sandbox: Sandbox) -> None:
        error = await failure(sandbox, "refuse", {})
        assert (error.reason, error.message) == ("DATA_MISMATCH", "array 'x' is wrong")
        assert error.metadata == {"array": "x", "index": "3"}
        assert error.fields == (("data", "wrong"),)

    @pytest.mark.parametrize(
        ("how", "text"),
        [
            ("value", "ValueError: no good"),
            ("eof", "EOFError: no good"),
            ("pipe", "BrokenPipeError: no good"),
            ("exit", "SystemExit: no good"),
        ],
    )
    async def test_any_other_exception_is_internal_and_keeps_its_traceback(
        self, sandbox: Sandbox, how: str, text: str
    ) -> None:
        error = await failure(sandbox, "fail", {"how": how})
        assert error.reason == "INTERNAL"
        assert text in error.message
        assert "sandbox_steps.py" in error.metadata["traceback"]

    @pytest.mark.parametrize(
        ("entry", "text"),
        [
            ("give_list", "gave list, not a dict"),
            ("give_object", "not JSON serializable"),
            ("no_such_function", "no_such_function"),
        ],
    )
    async def test_a_step_that_is_no_step_is_internal(self, sandbox: Sandbox, entry: str, text: str) -> None:
        error = await failure(sandbox, entry, {})
        assert error.reason == "INTERNAL"
        assert text in error.message

    @pytest.mark.parametrize(
        ("entry", "name"), [("abort", "SIGABRT"), ("segfault", "SIGSEGV"), ("kill_self", "SIGKILL")]
    )
    async def test_a_death_by_signal_names_the_signal(self, sandbox: Sandbox, entry: str, name: str) -> None:
        error = await failure(sandbox, entry, {})
        assert error.reason == "CHILD_CRASHED"
        assert error.metadata["signal"] == name
        assert name in error.message
        assert float(error.metadata["peak_memory_mib"]) > 1
        assert (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value["state"] == {}

    async def test_a_crash_tells_stage_stack_and_clean_last_words(self, sandbox: Sandbox) -> None:
        error = await failure(sandbox, "abort", {})
        assert error.metadata["stage"] == "convert"
        lines = error.metadata["log"].splitlines()
        assert "last words of the engine" in lines
        assert any("sandbox_steps.py" in line and "in abort" in line for line in lines)

    async def test_an_early_exit_tells_its_code_and_log(self, sandbox: Sandbox) -> None:
        error = await failure(sandbox, "leave", {})
        assert error.reason == "CHILD_CRASHED"
        assert error.metadata["exit_code"] == "3"
        assert error.metadata["log"] == "leaving early"

    async def test_a_log_without_end_does_not_fill_the_disk(self, sandbox: Sandbox, tmp_path: Path) -> None:
        sizes: list[int] = []
        run = asyncio.create_task(failure(sandbox, "shout", {"mib": 40}))
        while not run.done():
            logs = list((tmp_path / "scratch").glob("*/child-*.log"))
            sizes.append(max((log.stat().st_size for log in logs if log.exists()), default=0))
            await asyncio.sleep(0.02)
        assert max(sizes) > 1 << 20
        assert sizes[-2] <= 16 << 20
        assert "in shout" in (await run).metadata["log"]
        assert len((await run).metadata["log"].encode()) <= 8 << 10

    @pytest.mark.parametrize("how", ["close", "00000002000000005b5d", "ffffffffffffffff", "00000002000000007b7d"])
    async def test_a_child_that_breaks_the_protocol_is_ended(self, sandbox: Sandbox, how: str) -> None:
        error = await failure(sandbox, "talk_nonsense", {"how": how})
        assert error.reason == "CHILD_CRASHED"
        assert "no answer" in error.message


class TestLimits:
    @pytest.mark.parametrize("how", ["python", "c", "c with the GIL"])
    async def test_a_hang_is_ended_with_all_it_started(self, sandbox: Sandbox, how: str) -> None:
        pids: dict[str, Any] = {}
        with pytest.raises(SqueezeflowError) as caught:
            await sandbox.run("sandbox_steps:hang", {"how": how}, limits=Limits(0.7, 1000), on_progress=pids.update)
        assert caught.value.reason == "TIMED_OUT"
        assert caught.value.metadata["seconds"] == "0.7"
        assert caught.value.metadata["stage"] == "hang"
        assert not alive(pids["pid"])
        assert await until(lambda: not alive(pids["grandchild"]))
        assert alive(pids["server"])

    @pytest.mark.parametrize("entry", ["eat_memory", "eat_memory_elsewhere"])
    async def test_eating_memory_ends_at_the_limit(self, sandbox: Sandbox, entry: str) -> None:
        error = await failure(sandbox, entry, {}, Limits(30, 200))
        assert error.reason == "OUT_OF_MEMORY"
        assert error.metadata["memory_limit_mib"] == "200"
        assert 200 < float(error.metadata["peak_memory_mib"]) < 600

    @pytest.mark.parametrize("entry", ["ask_too_much_of_python", "ask_too_much_of_the_engine"])
    async def test_asking_for_more_than_there_is_is_out_of_memory(self, sandbox: Sandbox, entry: str) -> None:
        error = await failure(sandbox, entry, {})
        assert error.reason == "OUT_OF_MEMORY"
        assert error.metadata["memory_limit_mib"] == "1000"
        assert float(error.metadata["peak_memory_mib"]) < 1000

    async def test_a_limit_below_what_a_child_needs_to_start_is_out_of_memory(self, sandbox: Sandbox) -> None:
        error = await failure(sandbox, "hang", {"how": "c"}, Limits(30, 2))
        assert error.reason == "OUT_OF_MEMORY"

    async def test_cancelling_ends_the_child_and_all_it_started(self, sandbox: Sandbox) -> None:
        pids: dict[str, Any] = {}
        run = asyncio.create_task(
            sandbox.run("sandbox_steps:hang", {"how": "python"}, limits=GENEROUS, on_progress=pids.update)
        )
        assert await until(lambda: "pid" in pids)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert not alive(pids["pid"])
        assert await until(lambda: not alive(pids["grandchild"]))

    async def test_cancelling_at_any_moment_leaves_nothing(self, sandbox: Sandbox) -> None:
        for n in range(20):
            run = asyncio.create_task(sandbox.run("sandbox_steps:who", {}, limits=GENEROUS))
            await asyncio.sleep(n * 0.001)
            run.cancel()
            await asyncio.wait({run})
        assert await until(lambda: len(descendants(server_of(sandbox))) == 1)

    async def test_an_orphan_in_a_session_of_its_own_does_not_outlive_the_run(self, sandbox: Sandbox) -> None:
        told = await sandbox.run("sandbox_steps:leave_orphan", {}, limits=GENEROUS)
        assert await until(lambda: not alive(told.value["orphan"]))

    async def test_a_payload_beyond_the_bounds_is_refused_without_a_child(self, sandbox: Sandbox) -> None:
        error = await failure(sandbox, "who", {"text": "x" * (17 << 20)})
        assert error.reason == "INVALID_PARAMETER"


PARENT = """
import asyncio, json, sys
from pathlib import Path
from squeezeflow.core.sandbox import Limits, Sandbox

async def main():
    sandbox = Sandbox(preload=["sandbox_steps"], env=json.loads(sys.argv[1]), workdir=Path(sys.argv[2]))
    await sandbox.start()
    await sandbox.run("sandbox_steps:hang", json.loads(sys.argv[3]), limits=Limits(600, 1000),
        on_progress=lambda value: print(json.dumps(value), flush=True))

asyncio.run(main())
"""


class TestDeath:
    @pytest.mark.parametrize("how", ["python", "c", "c with the GIL"])
    async def test_nothing_outlives_a_parent_that_is_killed(self, tmp_path: Path, how: str) -> None:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, json.dumps(ENV), str(tmp_path), json.dumps({"how": how})],
            stdout=subprocess.PIPE,
        )
        assert parent.stdout is not None
        told = json.loads(await asyncio.to_thread(parent.stdout.readline))
        everyone = descendants(parent.pid)
        assert {told["pid"], told["server"], told["grandchild"]} <= set(everyone)
        assert all(alive(pid) for pid in everyone)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        assert await until(lambda: not any(alive(pid) for pid in everyone), 5), [p for p in everyone if alive(p)]
        assert await until(lambda: not list(tmp_path.iterdir()), 5)

    async def test_a_fork_server_that_still_imports_does_not_outlive_its_parent(self, tmp_path: Path) -> None:
        sign = tmp_path / "importing"
        (tmp_path / "slow_engine.py").write_text(f"import time\nopen({str(sign)!r}, 'w')\ntime.sleep(600)\n")
        script = PARENT.replace("sandbox_steps", "slow_engine", 1)
        env = json.dumps({"PYTHONPATH": str(tmp_path)})
        parent = subprocess.Popen([sys.executable, "-c", script, env, str(tmp_path / "scratch"), "{}"])
        assert await until(sign.exists, 20)
        (server,) = descendants(parent.pid)
        parent.kill()
        parent.wait()
        assert await until(lambda: not alive(server), 5)

    async def test_a_fork_server_that_is_killed_ends_its_runs_typed_and_is_replaced(self, sandbox: Sandbox) -> None:
        pids: dict[str, Any] = {}
        server = server_of(sandbox)
        run = asyncio.create_task(
            sandbox.run("sandbox_steps:hang", {"how": "python"}, limits=GENEROUS, on_progress=pids.update)
        )
        assert await until(lambda: "pid" in pids)
        os.kill(server, signal.SIGKILL)
        with pytest.raises(SqueezeflowError) as caught:
            await asyncio.wait_for(run, 10)
        assert caught.value.reason == "CHILD_CRASHED"
        assert "fork server" in caught.value.message
        assert await until(lambda: not alive(pids["pid"]) and not alive(pids["grandchild"]))
        told = (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value
        assert told["parent"] == sandbox.server_pid != server

    async def test_a_run_right_after_the_fork_servers_death_does_not_notice(self, sandbox: Sandbox) -> None:
        for _ in range(3):
            assert await until(lambda: sandbox.server_pid is not None)
            server = server_of(sandbox)
            os.kill(server, signal.SIGKILL)
            while alive(server):
                time.sleep(0.001)  # not asyncio's: the event loop must not hear of it before the run begins
            assert (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value["state"] == {}

    async def test_a_fork_server_that_does_not_answer_is_ended_at_close(self, tmp_path: Path) -> None:
        async with Sandbox(preload=["sandbox_steps"], env=ENV, workdir=tmp_path) as sandbox:
            everyone = [server_of(sandbox), *descendants(server_of(sandbox))]
            os.kill(server_of(sandbox), signal.SIGSTOP)
        assert await until(lambda: not any(alive(pid) for pid in everyone))

    async def test_ctrl_c_and_a_polite_end_of_the_group_leave_the_fork_server_alone(self, sandbox: Sandbox) -> None:
        server = server_of(sandbox)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(server, number)
        assert (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value["parent"] == server


class TestStartAndClose:
    async def test_an_import_that_fails_is_told_with_its_traceback(self, tmp_path: Path) -> None:
        (tmp_path / "broken_engine.py").write_text("import no_such_engine\n")
        sandbox = Sandbox(preload=["json", "broken_engine"], env={"PYTHONPATH": str(tmp_path)}, workdir=tmp_path / "w")
        with pytest.raises(SqueezeflowError) as caught:
            await sandbox.start()
        assert caught.value.reason == "INTERNAL"
        assert "No module named 'no_such_engine'" in caught.value.message
        assert "broken_engine.py" in caught.value.metadata["traceback"]
        assert not list((tmp_path / "w").iterdir())

    async def test_an_import_that_kills_the_fork_server_is_told_with_its_log(self, tmp_path: Path) -> None:
        (tmp_path / "deadly_engine.py").write_text("import os\nprint('about to die', flush=True)\nos.abort()\n")
        sandbox = Sandbox(preload=["deadly_engine"], env={"PYTHONPATH": str(tmp_path)})
        with pytest.raises(SqueezeflowError) as caught:
            await sandbox.start()
        assert caught.value.reason == "INTERNAL"
        assert "about to die" in caught.value.metadata["log"]

    async def test_closing_ends_everything_and_runs_hear_of_it(self, tmp_path: Path) -> None:
        sandbox = Sandbox(preload=["sandbox_steps"], env=ENV, spares=2, workdir=tmp_path)
        await sandbox.start()
        pids: dict[str, Any] = {}
        run = asyncio.create_task(
            sandbox.run("sandbox_steps:hang", {"how": "python"}, limits=GENEROUS, on_progress=pids.update)
        )
        assert await until(lambda: "pid" in pids)
        everyone = [server_of(sandbox), *descendants(server_of(sandbox))]
        await asyncio.wait_for(asyncio.gather(sandbox.close(), sandbox.close()), 10)
        await sandbox.close()
        with pytest.raises(SqueezeflowError) as caught:
            await run
        assert caught.value.reason == "WORKER_UNAVAILABLE"
        assert not any(alive(pid) for pid in everyone)
        assert not list(tmp_path.iterdir())
        assert (await failure(sandbox, "who", {})).reason == "WORKER_UNAVAILABLE"

    async def test_a_sandbox_without_spares_forks_on_demand(self, tmp_path: Path) -> None:
        async with Sandbox(preload=["sandbox_steps"], env=ENV, spares=0, workdir=tmp_path) as sandbox:
            assert await until(lambda: not descendants(server_of(sandbox)))
            assert (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value["state"] == {}


class TestSpares:
    async def test_a_run_takes_a_warmed_spare_and_another_the_next(self, tmp_path: Path) -> None:
        async with Sandbox(preload=[], warm="sandbox_steps:warm", env=ENV, workdir=tmp_path) as sandbox:
            await asyncio.sleep(0)  # the spare is offered; it may still be warming, then it is waited for
            (first,) = descendants(server_of(sandbox))
            told = (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value
            assert (told["pid"], told["state"]) == (first, {"warm": True})
            await asyncio.sleep(2)  # several times what a warm-up takes
            (second,) = [child for child in descendants(server_of(sandbox)) if child != first]
            told = (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value
            assert (told["pid"], told["state"]) == (second, {"warm": True})

    async def test_a_replacement_does_not_warm_beside_the_step_that_was_handed_out(self, tmp_path: Path) -> None:
        async with Sandbox(preload=[], warm="sandbox_steps:warm", env=ENV, workdir=tmp_path) as sandbox:
            await asyncio.sleep(0.8)
            run = asyncio.create_task(
                sandbox.run("sandbox_steps:report_many", {"seconds": 0, "then_silent": 4}, limits=GENEROUS)
            )
            await asyncio.sleep(0.8)  # more than a warm-up takes: the replacement has been forked, and has not begun
            told = (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value
            assert told["state"] == {}
            await run

    async def test_a_spare_that_is_killed_is_replaced(self, sandbox: Sandbox) -> None:
        assert await until(lambda: len(descendants(server_of(sandbox))) == 1)
        (spare,) = descendants(server_of(sandbox))
        os.kill(spare, signal.SIGKILL)
        assert await until(lambda: descendants(server_of(sandbox)) not in ([], [spare]))
        assert (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value["pid"] != spare

    async def test_a_warm_up_that_fails_is_logged_does_not_spin_and_holds_up_no_run(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        count = tmp_path / "count"
        env = {**ENV, "WARM_COUNT": str(count)}
        async with Sandbox(preload=[], warm="sandbox_steps:warm_badly", env=env, workdir=tmp_path / "w") as sandbox:
            for _ in range(5):
                assert (await sandbox.run("sandbox_steps:who", {}, limits=GENEROUS)).value["state"] == {}
                await asyncio.sleep(0.2)
            assert 1 <= len(count.read_text()) <= 4
        assert "RuntimeError: cannot warm" in caplog.text


class TestSession:
    async def test_a_session_keeps_its_state_and_passes_buffers(self, sandbox: Sandbox) -> None:
        session = await sandbox.session("sandbox_steps:open_counter", {"start": 5}, limits=GENEROUS)
        big = os.urandom(5 << 20)
        first, buffers = await session.call({}, [b"abc", b"", big], timeout=10)
        second, _ = await session.call({}, timeout=10)
        assert (first["calls"], second["calls"], first["start"]) == (1, 2, 5)
        assert first["pid"] == second["pid"]
        assert buffers == [b"cba", b"", big[::-1]]
        assert session.alive
        await session.close()
        await session.close()
        assert not session.alive
        assert not alive(first["pid"])

    async def test_calls_wait_for_each_other(self, sandbox: Sandbox) -> None:
        session = await sandbox.session("sandbox_steps:open_counter", {}, limits=GENEROUS)
        replies = await asyncio.gather(*(session.call({"seconds": 0.02}, timeout=1) for _ in range(10)))
        assert [header["calls"] for header, _ in replies] == list(range(1, 11))

    @pytest.mark.parametrize(("header", "reason"), [({"refuse": True}, "DATA_MISMATCH"), ({"fail": True}, "INTERNAL")])
    async def test_an_error_of_the_handler_does_not_end_the_session(
        self, sandbox: Sandbox, header: dict[str, Any], reason: str
    ) -> None:
        session = await sandbox.session("sandbox_steps:open_counter", {}, limits=GENEROUS)
        with pytest.raises(SqueezeflowError) as caught:
            await session.call(header, timeout=10)
        assert caught.value.reason == reason
        assert session.alive
        assert (await session.call({}, timeout=10))[0]["calls"] == 2

    @pytest.mark.parametrize(
        ("header", "reason"),
        [
            ({"abort": True}, "CHILD_CRASHED"),
            ({"seconds": 600}, "TIMED_OUT"),
            ({"eat": 300}, "OUT_OF_MEMORY"),
            ({"ask": True}, "OUT_OF_MEMORY"),
        ],
    )
    async def test_a_death_ends_the_session_and_later_calls_say_so(
        self, sandbox: Sandbox, header: dict[str, Any], reason: str
    ) -> None:
        session = await sandbox.session("sandbox_steps:open_counter", {}, limits=Limits(10, 250))
        pid = (await session.call({}, timeout=10))[0]["pid"]
        with pytest.raises(SqueezeflowError) as caught:
            await session.call(header, timeout=1)
        assert caught.value.reason == reason
        assert not session.alive
        assert await until(lambda: not alive(pid))
        with pytest.raises(SqueezeflowError, match="had ended before this call") as caught:
            await session.call({}, timeout=10)
        assert caught.value.reason == reason

    async def test_a_session_whose_child_dies_idle_is_dead(self, sandbox: Sandbox) -> None:
        session = await sandbox.session("sandbox_steps:open_counter", {}, limits=GENEROUS)
        os.kill((await session.call({}, timeout=10))[0]["pid"], signal.SIGKILL)
        assert await until(lambda: not session.alive)
        with pytest.raises(SqueezeflowError) as caught:
            await session.call({}, timeout=10)
        assert caught.value.metadata["signal"] == "SIGKILL"

    async def test_a_caller_that_goes_away_does_not_end_the_session(self, sandbox: Sandbox) -> None:
        session = await sandbox.session("sandbox_steps:open_counter", {}, limits=GENEROUS)
        call = asyncio.create_task(session.call({"seconds": 0.3}, timeout=10))
        waiting = asyncio.create_task(session.call({}, timeout=10))
        await asyncio.sleep(0.1)
        for task in (call, waiting):
            task.cancel()
        await asyncio.wait({call, waiting})
        header, buffers = await session.call({}, [b"ab"], timeout=10)
        assert (header["calls"], buffers) == (2, [b"ba"])

    async def test_closing_during_a_call_fails_the_call(self, sandbox: Sandbox) -> None:
        session = await sandbox.session("sandbox_steps:open_counter", {}, limits=GENEROUS)
        call = asyncio.create_task(session.call({"seconds": 600}, timeout=600))
        await asyncio.sleep(0.1)
        await asyncio.wait_for(session.close(), 10)
        with pytest.raises(SqueezeflowError) as caught:
            await call
        assert caught.value.reason == "WORKER_UNAVAILABLE"

    @pytest.mark.parametrize(
        ("payload", "reason"), [({"refuse": True}, "MALFORMED_MODEL"), ({"hang": True}, "TIMED_OUT")]
    )
    async def test_a_session_that_does_not_open_tells_why_and_leaves_nothing(
        self, sandbox: Sandbox, payload: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(SqueezeflowError) as caught:
            await sandbox.session("sandbox_steps:open_counter", payload, limits=Limits(0.5, 1000))
        assert caught.value.reason == reason
        assert await until(lambda: len(descendants(server_of(sandbox))) == 1)

    async def test_a_message_beyond_the_bounds_is_refused_and_the_session_lives(self, sandbox: Sandbox) -> None:
        session = await sandbox.session("sandbox_steps:open_counter", {}, limits=GENEROUS)
        with pytest.raises(SqueezeflowError) as caught:
            await session.call({}, [b""] * 2000, timeout=10)
        assert caught.value.reason == "INVALID_PARAMETER"
        assert (await session.call({}, timeout=10))[0]["calls"] == 1


async def test_tensorflow_imported_by_the_fork_server_works_in_children(tmp_path: Path) -> None:
    env = {**ENV, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    async with Sandbox(preload=["tensorflow"], env=env, spares=0, workdir=tmp_path) as sandbox:
        for _ in range(2):
            result = await sandbox.run(
                "sandbox_steps:first_tensorflow_operation", {}, limits=Limits(wall_seconds=60, memory_mib=2000)
            )
            assert result.value["value"] == 2.0
            assert result.value["seconds"] < 4  # an import would take longer
