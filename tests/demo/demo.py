"""The demo: a real model on real images through all services, from training to a served answer.

    python tests/demo/demo.py [--store s3] [--out demo-out]

Every step but training is a call of the real command line. All that it makes lies in the output folder; all that it
starts is stopped, and it says so only after it has looked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("dynamic", "int8", "prune", "prune-int8")
# The best candidate is the smallest one that costs at most this much accuracy.
MOST_DROP = 0.01
# Of fine-tuning while the model is pruned.
EPOCHS = "8"
SAMPLES = 10
START_SECONDS = 240


@dataclass(frozen=True)
class Demo:
    """Where the demo works.

    Attributes:
        out: receives the model, its data, `job.json`, the `.tflite` files and the services' state.
        environ: of every command.
    """

    out: Path
    environ: dict[str, str]

    @property
    def home(self) -> Path:
        """The services' state folder."""
        return self.out / "home"

    def squeezeflow(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs one command of the command line to its end."""
        print(f"\n$ squeezeflow {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "squeezeflow.cli", *arguments]
        return subprocess.run(command, env=self.environ, check=True, text=True, **options)


@contextlib.contextmanager
def services(demo: Demo, store: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `squeezeflow up` on free ports; stops it at the end and looks that nothing of it is left."""
    arguments = ["up", "--port-base", "0", *(["--store", store] if store else [])]
    print(f"$ squeezeflow {' '.join(arguments[:3])}{' --store s3://…' if store else ''} &", flush=True)
    with (demo.out / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "squeezeflow.cli", *arguments], env=demo.environ, stdout=log, stderr=log
        )
    addresses: list[str] = []
    try:
        yield process
        addresses = [value for value in endpoints(demo).values() if isinstance(value, str)]
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    left = [address for address in addresses if answers(address)]
    if code or left or (demo.home / "endpoints.json").exists():
        raise SystemExit(f"the services did not stop in order: exit code {code}, still there: {left}")
    print(f"\nall {len(addresses)} services have stopped")


def endpoints(demo: Demo) -> dict[str, Any]:
    """Reads where the services are."""
    content: dict[str, Any] = json.loads((demo.home / "endpoints.json").read_text())
    return content


def answers(address: str) -> bool:
    """Tells whether anything listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def wait_for_services(demo: Demo, process: subprocess.Popen[bytes]) -> None:
    """Waits until all services are SERVING."""
    deadline = time.monotonic() + START_SECONDS
    while not (demo.home / "endpoints.json").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the services did not start:\n{(demo.out / 'up.log').read_text()}")
        time.sleep(0.1)
    print("services: " + ", ".join(f"{name} {value}" for name, value in endpoints(demo).items()))


def train(demo: Demo) -> None:
    """Trains the model, in a process of its own."""
    print("\n$ python tests/demo/train.py", flush=True)
    script = Path(__file__).with_name("train.py")
    done = subprocess.run([sys.executable, script, demo.out], env=demo.environ, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"training failed:\n{done.stderr}")
    print(done.stdout, end="")


def compress(demo: Demo) -> dict[str, Any]:
    """Compresses the model by every recipe; keeps and shows the job."""
    recipes = [word for recipe in RECIPES for word in ("--recipe", recipe)]
    model, data = str(demo.out / "model.keras"), str(demo.out / "data.npz")
    options = ["--scale", "1/255", "--epochs", EPOCHS]
    done = demo.squeezeflow(
        "--json", "compress", model, "--data", data, *recipes, *options, "--out", str(demo.out), stdout=subprocess.PIPE
    )
    (demo.out / "job.json").write_text(done.stdout)
    job: dict[str, Any] = json.loads(done.stdout)
    demo.squeezeflow("jobs", "get", job["id"])
    wanted = {"float32", *RECIPES}
    succeeded = {c["recipe"] for c in job["candidates"] if c["state"] == "JOB_STATE_SUCCEEDED"}
    if succeeded != wanted:
        raise SystemExit(f"not every candidate succeeded: {sorted(wanted - succeeded)} did not")
    return job


def best_of(job: dict[str, Any]) -> dict[str, Any]:
    """Gives the smallest candidate, deflated, that is within a point of float32's accuracy."""
    baseline = next(c for c in job["candidates"] if c["recipe"] == "float32")
    floor = baseline["metrics"]["accuracy"]["value"] - MOST_DROP
    good = [c for c in job["candidates"] if c["metrics"]["accuracy"]["value"] >= floor]
    return min(good, key=lambda candidate: candidate["sizes"]["deflated_bytes"])


def serve(demo: Demo, candidate: dict[str, Any]) -> None:
    """Serves a candidate, asks it about real test images and compares its answers with the truth."""
    demo.squeezeflow("serve", candidate["artifact"], "--contract", candidate["contract"], "--name", "fashion")
    with np.load(demo.out / "data.npz") as data:
        images, truth, classes = data["x_test"][:SAMPLES], data["y_test"][:SAMPLES], data["classes"]
    np.savez(demo.out / "sample.npz", x=images)
    sample = str(demo.out / "sample.npz")
    answer = json.loads(demo.squeezeflow("--json", "infer", "fashion", "--data", sample, stdout=subprocess.PIPE).stdout)
    output = answer["outputs"][0]
    values = np.array(next(v for v in output["contents"].values() if v)).reshape([int(n) for n in output["shape"]])
    predicted = values.argmax(axis=1)
    print(f"\n{'image':<7}{'predicted':<14}truth")
    for index, (guess, label) in enumerate(zip(predicted, truth, strict=True)):
        print(f"{index:<7}{classes[guess]:<14}{classes[label]}{'' if guess == label else '   <- wrong'}")
    right = int((predicted == truth).sum())
    print(f"{right} of {SAMPLES} right")
    if right < SAMPLES // 2:
        raise SystemExit("the served model is wrong more often than right")


def run(demo: Demo, store: str) -> None:
    """Runs the demo over one store."""
    began = time.monotonic()
    with services(demo, store) as process:
        train(demo)
        wait_for_services(demo, process)
        job = compress(demo)
        best = best_of(job)
        print(
            f"\nbest: {best['recipe']}, {best['sizes']['deflated_bytes'] / 1000:.1f} kB deflated, "
            f"accuracy {best['metrics']['accuracy']['value']:.4f}"
        )
        serve(demo, best)
    print(f"done in {time.monotonic() - began:.0f} s; see {demo.out}/")


def main() -> None:
    """Reads the options and runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["dir", "s3"], default="dir", help="s3: a real S3 server, started for it")
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    shutil.rmtree(out / "home", ignore_errors=True)
    shutil.rmtree(out / "s3", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SQUEEZEFLOW_")}
    demo = Demo(out, {**kept, "SQUEEZEFLOW_HOME": str((out / "home").absolute())})
    if arguments.store == "dir":
        run(demo, "")
        return
    sys.path.insert(0, str(ROOT))
    from tests.servers.seaweedfs import seaweedfs

    with seaweedfs(out / "s3") as url:
        run(demo, url)


if __name__ == "__main__":
    main()
