"""Jobs and artifacts as tables for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.table import Table

from squeezeflow.v1 import artifact_pb2, jobs_pb2, step_pb2

_STATE_PREFIX = "JOB_STATE_"
_KIND_PREFIX = "ARTIFACT_KIND_"
Metrics = Mapping[str, step_pb2.Metric]


def size(count: int) -> str:
    """Gives bytes in decimal units: `28.3 kB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def state(number: int) -> str:
    """Gives the bare word of a job state."""
    return jobs_pb2.JobState.Name(number).removeprefix(_STATE_PREFIX)


def kind(number: int) -> str:
    """Gives the word of an artifact kind, as `artifacts put --kind` takes it."""
    return artifact_pb2.ArtifactKind.Name(number).removeprefix(_KIND_PREFIX).lower()


def table(*columns: tuple[str, str]) -> Table:
    """Gives an empty table: columns by header and justification, cells that are too wide folded."""
    empty = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header, justify in columns:
        empty.add_column(header, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return empty


def job_table(job: jobs_pb2.Job) -> Table:
    """Gives one row a candidate: sizes, figures, proofs, and why it failed."""
    regression = any("mae" in candidate.metrics for candidate in job.candidates)
    rows = table(
        ("recipe", "left"),
        ("raw", "right"),
        ("deflated", "right"),
        ("mae" if regression else "accuracy", "right"),
        ("increase" if regression else "drop (points)", "right"),
        ("latency p50", "right"),
        ("invariants", "right"),
        ("note", "left"),
    )
    for candidate in job.candidates:
        rows.add_row(
            candidate.recipe,
            size(candidate.sizes.raw_bytes) if candidate.HasField("sizes") else "–",
            size(candidate.sizes.deflated_bytes) if candidate.HasField("sizes") else "–",
            _figure(candidate.metrics, "mae", 1, 4)
            if regression
            else _figure(candidate.metrics, "accuracy", 100, 2, " %"),
            _drop(candidate.metrics, regression),
            _latency(candidate.metrics),
            _invariants(candidate.invariants),
            _note(candidate),
        )
    return rows


def costs_table(job: jobs_pb2.Job) -> Table:
    """Gives one row a finished candidate: what its file costs wherever it runs."""
    rows = table(("recipe", "left"), ("parameters", "right"), ("MACs", "right"), ("arena peak", "right"))
    for candidate in job.candidates:
        costs = candidate.metrics
        if "macs" in costs:
            parameters, macs = (f"{costs[name].value:,.0f}" for name in ("parameters", "macs"))
            rows.add_row(candidate.recipe, parameters, macs, size(int(costs["arena_peak_bytes"].value)))
    return rows


def job_lines(job: jobs_pb2.Job) -> list[str]:
    """Gives what belongs below the table: state, time, and what else is to be known of whom."""
    lines = [f"job {job.id}: {state(job.state).lower()}{_took(job)}"]
    lines += [f"note: {note}" for note in job.notes]
    whose: dict[str, list[str]] = {}
    for candidate in job.candidates:
        for note in candidate.notes:
            whose.setdefault(note, []).append(candidate.recipe)
    return lines + [f"{', '.join(recipes)}: {note}" for note, recipes in whose.items()]


def jobs_table(jobs: Iterable[jobs_pb2.Job]) -> Table:
    """Gives one row a job, in the order given."""
    rows = table(("job", "left"), ("state", "left"), ("created", "left"), ("seconds", "right"), ("recipes", "left"))
    for job in jobs:
        names = [recipe.name for recipe in job.spec.recipes]
        rows.add_row(job.id, state(job.state), when(job.create_time), _seconds(job), " ".join(names))
    return rows


def artifacts_table(artifacts: Iterable[artifact_pb2.Artifact]) -> Table:
    """Gives one row an artifact, with its whole digest."""
    rows = table(("digest", "left"), ("kind", "left"), ("size", "right"), ("stored", "left"))
    for artifact in artifacts:
        rows.add_row(artifact.digest, kind(artifact.kind), size(artifact.size_bytes), when(artifact.create_time))
    return rows


def shape(axes: Sequence[int]) -> str:
    """Gives a shape with `?` for free axes: `(?, 28, 28)`."""
    return "(" + ", ".join("?" if axis < 0 else str(axis) for axis in axes) + ")" if axes else ""


def when(timestamp: Timestamp) -> str:
    """Gives a time in UTC to the second; empty where it is not set."""
    return f"{timestamp.ToDatetime():%Y-%m-%d %H:%M:%SZ}" if timestamp.seconds else ""


def _figure(metrics: Metrics, name: str, factor: float, digits: int, unit: str = "") -> str:
    if name not in metrics:
        return "–"
    metric = metrics[name]
    text = f"{metric.value * factor:.{digits}f}{unit}"
    if metric.HasField("low") and metric.HasField("high"):
        text += f" ± {(metric.high - metric.low) / 2 * factor:.{digits}f}"
    return text


def _drop(metrics: Metrics, regression: bool) -> str:
    text = _figure(metrics, "mae_increase", 1, 4) if regression else _figure(metrics, "accuracy_drop", 100, 2)
    return text if text.startswith(("-", "–")) else f"+{text}"


def _latency(metrics: Metrics) -> str:
    if "latency_p50_ms" not in metrics:
        return "–"
    text = f"{metrics['latency_p50_ms'].value:.3g} ms"
    return f"{text} ({metrics['latency_ratio'].value:.2f}x)" if "latency_ratio" in metrics else text


def _invariants(invariants: Sequence[step_pb2.Invariant]) -> str:
    return f"{sum(i.passed for i in invariants)}/{len(invariants)}" if invariants else "–"


def _note(candidate: jobs_pb2.Candidate) -> str:
    if candidate.error.reason:
        return f"{candidate.error.reason}: {' '.join(candidate.error.message.split())}"
    return "" if candidate.state == jobs_pb2.JOB_STATE_SUCCEEDED else state(candidate.state).lower()


def _took(job: jobs_pb2.Job) -> str:
    seconds = _seconds(job)
    return f" in {seconds} s" if seconds else ""


def _seconds(job: jobs_pb2.Job) -> str:
    if not (job.HasField("end_time") and job.HasField("create_time")):
        return ""
    return f"{(job.end_time.ToNanoseconds() - job.create_time.ToNanoseconds()) / 1e9:.1f}"
