"""The demo as a newcomer runs it, through a real S3 server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_compresses_and_serves_a_real_model_through_a_real_s3_server(tmp_path: Path) -> None:
    command = [sys.executable, "tests/demo/demo.py", "--store", "s3", "--out", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    done = {candidate["recipe"]: candidate for candidate in job["candidates"]}
    assert list(done) == ["float32", "dynamic", "int8", "prune", "prune-int8"]
    float32 = done["float32"]
    assert float32["metrics"]["accuracy"]["value"] > 0.85
    assert float32["metrics"]["accuracy"]["samples"] == 10000
    for recipe, candidate in done.items():
        assert candidate["state"] == "JOB_STATE_SUCCEEDED"
        assert (tmp_path / "out" / f"{recipe}.tflite").stat().st_size == candidate["sizes"]["raw_bytes"]
    assert done["int8"]["sizes"]["raw_bytes"] < 0.35 * float32["sizes"]["raw_bytes"]
    assert done["prune-int8"]["sizes"]["deflated_bytes"] < 0.15 * float32["sizes"]["deflated_bytes"]
    for recipe in ("dynamic", "int8"):
        assert done[recipe]["metrics"]["accuracy_drop"]["value"] < 0.01
