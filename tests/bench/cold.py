"""`squeezeflow compress --recipe dynamic` with nothing running, against a cold script that does the same.

Both convert to float32 and dynamic range, evaluate both on the test arrays in LiteRT and time both. Each command run
has a home of its own, so nothing is cached.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.inputs import ROOT, model_and_data

ROUNDS = 3


def timed(command: list[str], home: Path) -> float:
    """Runs a command and gives its wall seconds."""
    env = {**os.environ, "SQUEEZEFLOW_HOME": str(home)}
    for name in ("SQUEEZEFLOW_SERVER", "SQUEEZEFLOW_STORE"):
        env.pop(name, None)
    began = time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if run.returncode:
        raise RuntimeError(f"{command} failed: {run.stderr[-3000:]}")
    return seconds


def measure() -> dict[str, float]:
    """Interleaves cold scripts and cold commands."""
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        model, data = model_and_data(folder)
        for number in range(ROUNDS):
            out = folder / f"out-{number}"
            out.mkdir()
            script = [sys.executable, "tests/bench/script.py", "cold", str(model), str(data), str(out)]
            bare.append(timed(script, folder))
            command = [sys.executable, "-m", "squeezeflow.cli", "compress", str(model), "--data", str(data)]
            command += ["--recipe", "dynamic", "--scale", "1/255", "--out", str(out)]
            ours.append(timed(command, folder / f"home-{number}"))
    script_s, command_s = statistics.median(bare), statistics.median(ours)
    return {"script_s": script_s, "command_s": command_s, "ratio": command_s / script_s}
