"""`make bench`: everything that is promised as a ratio, measured in one run; prints it and writes build/bench.json."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import cold, memory, six_recipes, steps, store, training, transfer

PARTS: dict[str, Callable[[], Any]] = {
    "steps": steps.measure,
    "cold": cold.measure,
    "store": store.measure,
    "transfer": transfer.measure,
    "memory": memory.measure,
    "training": training.measure,
    "six recipes": six_recipes.measure,
}


def main() -> None:
    """Runs the parts that were asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    results = {}
    for name in parser.parse_args().parts or PARTS:
        print(f"== {name}", flush=True)
        results[name] = PARTS[name]()
        print(json.dumps(results[name], indent=2), flush=True)
    out = Path("build/bench.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=2))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
