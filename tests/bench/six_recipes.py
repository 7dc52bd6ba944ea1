"""Six recipes on one model by one `squeezeflow compress` with nothing running, against six scripts one after another.

Each script does what an engineer would write for its recipe with TensorFlow and TFMOT alone: load, fine-tune, convert,
evaluate on the test arrays in LiteRT, time. The command does that and more, and it shares: the pruned model of four
recipes is trained once.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench.cold import timed
from tests.bench.inputs import model_and_data

ROUNDS = 2
RECIPES = ("dynamic", "int8", "prune", "prune-int8", "prune-cluster-int8", "pqat")
EPOCHS = 2


def measure() -> dict[str, float]:
    """Interleaves the scripts and the command."""
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        model, data = model_and_data(folder)
        for number in range(ROUNDS):
            scripts = [
                [sys.executable, "tests/bench/recipe_script.py", recipe, str(EPOCHS), str(model), str(data), text]
                for recipe in RECIPES
            ]
            bare.append(sum(timed(script, folder) for script in scripts))
            command = [sys.executable, "-m", "squeezeflow.cli", "compress", str(model), "--data", str(data)]
            command += [word for recipe in RECIPES for word in ("--recipe", recipe)]
            command += ["--epochs", str(EPOCHS), "--scale", "1/255", "--out", text]
            ours.append(timed(command, folder / f"home-{number}"))
    scripts_s, command_s = statistics.median(bare), statistics.median(ours)
    return {"scripts_s": scripts_s, "command_s": command_s, "ratio": command_s / scripts_s}
