"""Jobs, models and artifacts as tables for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.table import Table

from squeezeflow.v1 import artifact_pb2, jobs_pb2, model_pb2, step_pb2

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


def job_table(job: jobs_pb2.Job) -> Table:
    """Gives one row a candidate: sizes, figures, proofs, and why it failed."""
    regression = any("mae" in candidate.metrics for candidate in job.candidates)
    table = _table(
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
        table.add_row(
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
    return table


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
    table = _table(("job", "left"), ("state", "left"), ("created", "left"), ("seconds", "right"), ("recipes", "left"))
    for job in jobs:
        names = [recipe.name for recipe in job.spec.recipes]
        table.add_row(job.id, state(job.state), when(job.create_time), _seconds(job), " ".join(names))
    return table


def artifacts_table(artifacts: Iterable[artifact_pb2.Artifact]) -> Table:
    """Gives one row an artifact, with its whole digest."""
    table = _table(("digest", "left"), ("kind", "left"), ("size", "right"), ("stored", "left"))
    for artifact in artifacts:
        table.add_row(artifact.digest, kind(artifact.kind), size(artifact.size_bytes), when(artifact.create_time))
    return table


def layers_table(description: model_pb2.ModelDescription) -> Table:
    """Gives one row a layer, and for each technique what it would do with it."""
    techniques = sorted({t.technique for layer in description.layers for t in layer.techniques})
    table = _table(("layer", "left"), ("class", "left"), ("output", "left"), ("parameters", "right"))
    for technique in techniques:
        table.add_column(technique)
    for layer in description.layers:
        support = {t.technique: t for t in layer.techniques}
        cells = [_support(support.get(technique)) for technique in techniques]
        table.add_row(layer.name, layer.class_name, shape(layer.output_shape), f"{layer.parameters:,}", *cells)
    return table


def techniques_table(description: model_pb2.ModelDescription) -> Table:
    """Gives one row a technique: whether it takes this model, and why not."""
    table = _table(("technique", "left"), ("takes this model", "left"))
    for technique in description.techniques:
        table.add_row(technique.technique, _support(technique))
    return table


def tensors_table(description: model_pb2.ModelDescription) -> Table:
    """Gives one row a tensor of a TFLite file."""
    table = _table(
        ("#", "right"),
        ("tensor", "left"),
        ("dtype", "left"),
        ("shape", "left"),
        ("scale", "left"),
        ("zero point", "left"),
        ("bytes", "right"),
        ("sparsity", "right"),
        ("distinct", "right"),
    )
    for tensor in description.tensors:
        held = tensor.constant
        table.add_row(
            str(tensor.index),
            tensor.name,
            tensor.dtype,
            shape(tensor.shape),
            _per_axis(tensor.scales, tensor.quantized_dimension),
            _per_axis(tensor.zero_points, tensor.quantized_dimension),
            size(tensor.raw_bytes) if held else "",
            f"{tensor.sparsity:.3f}" if held else "",
            str(tensor.unique_values) if held else "",
        )
    return table


def operators_table(description: model_pb2.ModelDescription) -> Table:
    """Gives one row an operator of a TFLite file, in execution order."""
    table = _table(
        ("#", "right"), ("operator", "left"), ("arithmetic", "left"), ("inputs", "left"), ("outputs", "left")
    )
    for operator in description.operators:
        inputs = " ".join(str(index) for index in operator.inputs)
        outputs = " ".join(str(index) for index in operator.outputs)
        table.add_row(str(operator.index), operator.name, operator.arithmetic, inputs, outputs)
    return table


def shape(axes: Sequence[int]) -> str:
    """Gives a shape with `?` for free axes: `(?, 28, 28)`."""
    return "(" + ", ".join("?" if axis < 0 else str(axis) for axis in axes) + ")" if axes else ""


def when(timestamp: Timestamp) -> str:
    """Gives a time in UTC to the second; empty where it is not set."""
    return f"{timestamp.ToDatetime():%Y-%m-%d %H:%M:%SZ}" if timestamp.seconds else ""


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header, justify in columns:
        table.add_column(header, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


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


def _support(technique: model_pb2.TechniqueSupport | None) -> str:
    if technique is None:
        return ""
    return "yes" if technique.supported else f"no: {technique.reason}"


def _per_axis(values: Sequence[float], axis: int) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.6g}"
    low, high = min(values), max(values)
    spread = f"{low:.4g}" if low == high else f"{low:.4g}…{high:.4g}"
    return f"{spread} (axis {axis}, {len(values)})"
