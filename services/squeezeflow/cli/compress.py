"""`squeezeflow compress`: one job from upload to table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from squeezeflow.cli import exits
from squeezeflow.cli.exits import UsageError
from squeezeflow.cli.output import Output, stderr_console
from squeezeflow.cli.session import open_session
from squeezeflow.cli.settings import Settings
from squeezeflow.core import artifacts, recipes
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import jobs_pb2, step_pb2, technique_pb2

if TYPE_CHECKING:
    from squeezeflow.client import Client

EXPORTS = {"savedmodel": technique_pb2.Export.FORMAT_SAVED_MODEL, "keras": technique_pb2.Export.FORMAT_KERAS}
# What a job takes besides the services of its techniques: description and conversion, and measurement.
_ALWAYS = frozenset({"orchestrator", "converter", "inference"})
_SERVICE_OF = {
    "convert": "converter",
    "export": "converter",
    "quantize": "quantizer",
    "train_quantized": "quantizer",
    "prune": "pruner",
    "cluster": "pruner",
}
_CANCEL_SECONDS = 15.0


@dataclass(frozen=True)
class CompressOrder:
    """What the command line was asked to compress, and how; see `squeezeflow compress --help`."""

    model: Path
    data: Path | None = None
    recipes: Sequence[str] = ()
    settings: Sequence[str] = ()
    out: Path | None = None
    exports: Sequence[str] = ()
    signature: str = ""
    loss: str = ""
    from_logits: bool | None = None
    epochs: int | None = None
    seed: int | None = None
    scale: Sequence[float] = ()
    offset: Sequence[float] = ()


def run(settings: Settings, output: Output, order: CompressOrder) -> int:
    """Runs one job, writes its table or document, and gives the exit code."""
    spec = job_spec(order)
    model_kind = artifacts.kind_of_path(order.model, role="model")
    data_kind = artifacts.kind_of_path(order.data, role="data") if order.data else 0
    with open_session(settings, output, services_for(spec)) as session:
        client = session.client
        spec.model.artifact = client.upload(order.model, model_kind).digest
        if order.data:
            spec.data.artifact = client.upload(order.data, data_kind).digest
        # Workers that are still starting take calls and answer when they can: nothing waits for the slowest of them.
        job = client.create_job(spec)
        output.tell(f"job {job.id}")
        job, interrupted = follow(client, job, output, cancel=True)
        if order.out is not None:
            save(client, job, order.out, output)
        answer(output, job)
    return report(output, job, interrupted=interrupted)


def job_spec(order: CompressOrder) -> jobs_pb2.JobSpec:
    """Gives the job without its digests.

    Raises:
        UsageError: an unknown recipe name, a recipe file that is not there, exports without a folder to put them in.
        SqueezeflowError: INVALID_PARAMETER for settings and recipe files that are wrong.
    """
    if order.exports and order.out is None:
        raise UsageError("INVALID_PARAMETER", "--export needs --out DIR to write to")
    if (order.scale or order.offset) and order.data is None:
        raise UsageError("INVALID_PARAMETER", "--scale and --offset say how --data is read: give --data")
    chosen = [_recipe(name) for name in order.recipes] or recipes.default_recipes(with_data=order.data is not None)
    chosen = recipes.override(chosen, order.settings)
    if order.seed is not None:
        _seed_draws(chosen, order.seed)
    spec = jobs_pb2.JobSpec(
        model=step_pb2.ModelInput(signature=order.signature),
        recipes=chosen,
        exports=[technique_pb2.Export(format=EXPORTS[name]) for name in order.exports],
    )
    if order.data is not None:
        spec.data.CopyFrom(step_pb2.DataInput(scale=order.scale, offset=order.offset))
    tuned = {"loss": order.loss or None, "from_logits": order.from_logits, "epochs": order.epochs, "seed": order.seed}
    given = {name: value for name, value in tuned.items() if value is not None}
    if given:
        spec.fine_tune.CopyFrom(technique_pb2.FineTune(**given))  # type: ignore[arg-type]
    if given or order.settings or any(name not in recipes.RECIPES for name in order.recipes):
        _check_values(spec)
    return spec


def services_for(spec: jobs_pb2.JobSpec) -> frozenset[str]:
    """Gives the services that a job needs."""
    return _ALWAYS | {_SERVICE_OF[technique] for technique in recipes.techniques_of(spec.recipes)}


def follow(client: Client, job: jobs_pb2.Job, output: Output, *, cancel: bool) -> tuple[jobs_pb2.Job, bool]:
    """Shows a job until it has ended; gives its last state, and whether Ctrl-C ended it.

    Args:
        cancel: whether Ctrl-C ends the job too, not only the watching.
    """
    from squeezeflow.cli.progress import job_view

    with job_view(stderr_console()) as view:
        try:
            for update in client.watch_job(job.id):
                job = update
                view.update(job)
        except KeyboardInterrupt:
            if not cancel:
                raise
            output.tell(f"cancelling job {job.id}")
            client.cancel_job(job.id)
            return _wait_for_end(client, job.id), True
    return job, False


def save(client: Client, job: jobs_pb2.Job, folder: Path, output: Output) -> None:
    """Writes every candidate's file as RECIPE.tflite, and its exports as RECIPE.keras and RECIPE.savedmodel."""
    folder.mkdir(parents=True, exist_ok=True)
    for candidate in job.candidates:
        wanted = {f"{candidate.recipe}.{name}": digest for name, digest in candidate.exports.items()}
        if candidate.state == jobs_pb2.JOB_STATE_SUCCEEDED and candidate.artifact:
            wanted[f"{candidate.recipe}.tflite"] = candidate.artifact
        for name, digest in wanted.items():
            client.download(digest, folder / name, replace=True)
            output.tell(f"wrote {folder / name}")


def answer(output: Output, job: jobs_pb2.Job) -> None:
    """Writes a job as a document, or as its table."""
    from squeezeflow.cli import tables

    output.message(job)
    output.show("", tables.job_table(job), "", *tables.job_lines(job))


def report(output: Output, job: jobs_pb2.Job, *, interrupted: bool) -> int:
    """Says why an ended job failed, and gives the exit code."""
    failure = exits.failure_of(job)
    if interrupted:
        failure = SqueezeflowError("CANCELLED", f"job {job.id} was interrupted")
    if failure is None:
        return exits.DONE
    output.fail(failure)
    return exits.code_of(failure.reason)


def _recipe(name: str) -> jobs_pb2.Recipe:
    path = Path(name)
    if path.suffix == ".json" or len(path.parts) > 1:
        if not path.is_file():
            raise UsageError("NOT_FOUND", f"there is no recipe file {name}: correct the path")
        return recipes.load_file(path)
    try:
        return recipes.named(name)
    except SqueezeflowError as error:
        raise UsageError(error.reason, error.message) from error


def _seed_draws(chosen: Sequence[jobs_pb2.Recipe], seed: int) -> None:
    """Seeds calibration and comparison draws too, where the recipe does not say."""
    for recipe in chosen:
        for technique in recipe.techniques:
            if technique.WhichOneof("technique") == "quantize" and not technique.quantize.HasField("seed"):
                technique.quantize.seed = seed


def _check_values(spec: jobs_pb2.JobSpec) -> None:
    """Refuses values out of bounds before anything is started or sent."""
    # The digests come later.
    probe = jobs_pb2.JobSpec()
    probe.CopyFrom(spec)
    probe.model.artifact = "0" * 64
    from squeezeflow.rpc.checks import check_message

    check_message(probe)


def _wait_for_end(client: Client, job_id: str) -> jobs_pb2.Job:
    deadline = time.monotonic() + _CANCEL_SECONDS
    while True:
        job = client.get_job(job_id)
        if job.state not in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING, jobs_pb2.JOB_STATE_CANCELLING):
            return job
        if time.monotonic() > deadline:
            return job
        time.sleep(0.1)
