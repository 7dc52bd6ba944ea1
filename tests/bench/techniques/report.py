"""The tables of `make bench-techniques`: what came out, beside what was published and what was aimed at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from squeezeflow.core.figures import Z

BEGIN, END = "<!-- bench-techniques: begin -->", "<!-- bench-techniques: end -->"
# From the guides of the TensorFlow Model Optimization Toolkit and the TFLite performance page: other models and data.
PUBLISHED = {
    "int8": "MobileNetV1 70.9 → 65.7, Inception 78.0 → 77.2",
    "qat": "MobileNetV1 71.03 → 71.06, MobileNetV2 70.77 → 70.01",
    "prune-50": "MobileNetV1 71.04 → 70.84, MobileNetV2 71.77 → 69.64",
    "prune": "3x smaller deflated",
    "prune-int8": "10x smaller deflated",
    "cluster-32": "MobileNetV1 70.98 → 69.40",
    "cluster-int8": "8x smaller deflated",
    "pqat": "DS-CNN-L 94.13 against pruned + PTQ 93.80",
    "cqat": "MobileNetV1 65.42 against clustered + PTQ 60.60",
}
Row = Mapping[str, Any]


def markdown(results: Mapping[str, Any]) -> str:
    """Gives the whole report."""
    parts = []
    for model, seeds in results.items():
        parts += [f"**{model}**, {len(seeds)} seeds", "", *_table(seeds), ""]
        refused = _refused(seeds)
        if refused:
            parts += ["Refused, with the reason:", "", *refused, ""]
    parts += ["**What was aimed at**", "", "| model | aim | measured | met |", "| --- | --- | --- | --- |"]
    for model, seeds in results.items():
        parts += [f"| {model} | {aim} | {value} | {'yes' if met else 'no'} |" for aim, value, met in _aims(seeds)]
    return "\n".join(parts).strip() + "\n"


def into_readme(path: Path, text: str) -> None:
    """Replaces what stands between the marks."""
    content = path.read_text(encoding="utf-8")
    before, _, rest = content.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def _rows(seeds: Mapping[str, Any], recipe: str) -> list[Row]:
    rows = [run["candidates"].get(recipe, {"error": "not run"}) for run in seeds.values()]
    return [row for row in rows if "error" not in row]


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.fmean(row[key] for row in rows) if rows else float("nan")


def _table(seeds: Mapping[str, Any]) -> list[str]:
    lines = [
        "| recipe | deflated kB | smaller | accuracy % | drop, points (min … max) | zeros % | values a channel | "
        "latency, x | published |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = _rows(seeds, "float32")
    for recipe in next(iter(seeds.values()))["candidates"]:
        rows = _rows(seeds, recipe)
        if not rows:
            continue
        drops = [100 * row.get("accuracy_drop", 0.0) for row in rows]
        deflated = _mean(rows, "deflated")
        lines.append(
            f"| `{recipe}` | {deflated / 1000:.1f} | {_mean(base, 'deflated') / deflated:.1f}x "
            f"| {100 * _mean(rows, 'accuracy'):.2f} "
            f"| {statistics.fmean(drops):+.2f} ({min(drops):+.2f} … {max(drops):+.2f}) "
            f"| {100 * _mean(rows, 'zeros'):.0f} | {max(row['values'] for row in rows)} "
            f"| {_mean([{'ratio': row.get('latency_ratio', 1.0)} for row in rows], 'ratio'):.2f} "
            f"| {PUBLISHED.get(recipe, '')} |"
        )
    return lines


def _refused(seeds: Mapping[str, Any]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for run in seeds.values():
        for recipe, row in run["candidates"].items():
            if "error" in row and recipe not in reasons.setdefault(row["error"], []):
                reasons[row["error"]].append(recipe)
    return [f"- {', '.join(f'`{name}`' for name in names)}: {reason}" for reason, names in reasons.items()]


def _pooled(runs: Sequence[Row]) -> tuple[float, float]:
    """Gives the paired drop over all seeds and the upper end of its 95 % interval, in points.

    A test sample is one draw, whatever the number of models that saw it: differences are averaged over the seeds
    sample by sample, and the interval is that of their mean.
    """
    samples = runs[0]["samples"]
    differences = [0.0] * samples
    for run in runs:
        for sign, name in ((1, "only_second"), (-1, "only_first")):
            for sample in run[name]:
                differences[sample] += sign / len(runs)
    mean = statistics.fmean(differences)
    return 100 * mean, 100 * (mean + Z * statistics.stdev(differences) / math.sqrt(samples))


def _aims(seeds: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Gives (aim, what was measured, met) for every aim whose recipes succeeded; means over the seeds."""
    base = _rows(seeds, "float32")
    found: list[tuple[str, str, bool]] = []

    def drop(recipe: str, most: float, text: str) -> None:
        rows = _rows(seeds, recipe)
        if rows:
            value = 100 * statistics.fmean(row.get("accuracy_drop", 0.0) for row in rows)
            found.append((text, f"{value:+.2f} points", value <= most))

    def smaller(recipe: str, least: float, text: str) -> None:
        rows = _rows(seeds, recipe)
        if rows:
            value = _mean(base, "deflated") / _mean(rows, "deflated")
            found.append((text, f"{value:.2f}x", value >= least))

    drop("int8", 1.0, "`int8` within 1 point")
    drop("qat", 1.0, "`qat` within 1 point of float")
    drop("prune-50", 1.0, "50 % pruning within 1 point")
    smaller("prune", 3.0, "80 % pruning 3x smaller deflated")
    smaller("prune-int8", 10.0, "pruned + int8 10x smaller deflated")
    drop("cluster", 1.5, "16 clusters within 1.5 points")
    drop("cluster-32", 1.5, "32 clusters within 1.5 points")
    for pair in next(iter(seeds.values()))["pairs"]:
        runs = [run["pairs"][pair] for run in seeds.values() if run["pairs"][pair]]
        if runs:
            mean, high = _pooled(runs)
            text = f"{mean:+.2f} points, upper end {high:+.2f}"
            found.append((f"{pair}: not worse by more than 0.5 points", text, high <= 0.5))
    for kept, lost in (("pqat", "prune-qat"), ("pcqat", "prune-qat")):
        ours, plain = _rows(seeds, kept), _rows(seeds, lost)
        if ours and plain:
            text = f"{100 * _mean(ours, 'zeros'):.0f} % zeros, plain {100 * _mean(plain, 'zeros'):.0f} %"
            met = _mean(ours, "zeros") >= _mean(_rows(seeds, "prune"), "zeros") - 0.005
            found.append((f"`{kept}` keeps the zeros that plain training loses", text, met))
    ours, plain = _rows(seeds, "cqat"), _rows(seeds, "cluster-qat")
    if ours and plain:
        kept, lost = max(row["values"] for row in ours), max(row["values"] for row in plain)
        found.append(
            ("`cqat` keeps 16 values a channel where plain training loses them", f"{kept}, plain {lost}", kept <= 16)
        )
    return found
