"""The commands and their options. What a command does is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from squeezeflow.cli.output import Output
from squeezeflow.cli.settings import Settings

GLOBAL_HINT = (
    "--server, --converter, --inference and --json (see squeezeflow --help) may stand before or after the command."
)

app = typer.Typer(
    name="squeezeflow",
    help="Makes TensorFlow models small, and proves it. State is kept under SQUEEZEFLOW_HOME.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
jobs_app = typer.Typer(help="What ran, what runs, and an end to it.", no_args_is_help=True)
artifacts_app = typer.Typer(help="What is stored, in and out.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
app.add_typer(artifacts_app, name="artifacts")


class ExportFormat(StrEnum):
    """Formats that `--export` takes."""

    savedmodel = "savedmodel"
    keras = "keras"


PageSize = Annotated[int, typer.Option(min=0, max=1000, help="Most rows; 0: the server's default.")]
PageToken = Annotated[str, typer.Option(help="Where to go on; told by the page before.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


@app.callback()
def set_globals(
    context: typer.Context,
    server: Annotated[
        str,
        typer.Option(
            envvar="SQUEEZEFLOW_SERVER",
            metavar="HOST:PORT",
            help="The orchestrator. Else that of a running `up`; else services are started for the call.",
        ),
    ] = "",
    converter: Annotated[
        str,
        typer.Option(
            envvar="SQUEEZEFLOW_CONVERTER",
            metavar="HOST:PORT",
            help="The converter, for `inspect` with --server; known by itself on this machine.",
        ),
    ] = "",
    inference: Annotated[
        str,
        typer.Option(
            envvar="SQUEEZEFLOW_INFERENCE",
            metavar="HOST:PORT",
            help="Inference, for `serve` and `infer` with --server; known by itself on this machine.",
        ),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document, the API message.")] = False,
) -> None:
    """Keeps what holds for every command."""
    settings = Settings(server=server, converter=converter, inference=inference, environ=dict(os.environ))
    output: Output = context.obj
    output.as_json = json
    context.obj = (settings, output)


@app.command(epilog=GLOBAL_HINT)
def compress(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", exists=True, help=".keras, .h5, or a SavedModel folder.")],
    data: Annotated[
        Path | None, typer.Option(metavar="F.npz|DIR", exists=True, help="Arrays x_train, y_train, x_test, y_test, ….")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE.json",
            help="int8, prune-cluster-int8, pqat, …, or the JSON of a Recipe; repeatable. A wrong name lists them. "
            "Without: dynamic, and int8 where there is data.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="TECHNIQUE.FIELD=VALUE",
            help="For example prune.sparsity=0.8 or cluster.layers.exclude=conv_1,head*; repeatable.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", file_okay=False, help="Receives RECIPE.tflite.")] = None,
    export: Annotated[
        list[ExportFormat] | None,
        typer.Option(metavar="savedmodel|keras", help="Write this format to --out as well; repeatable."),
    ] = None,
    signature: Annotated[str, typer.Option(help="SavedModel: which signature; else the only one.")] = "",
    loss: Annotated[str, typer.Option(help="Keras name of the loss, where it cannot be read from the model.")] = "",
    from_logits: Annotated[
        bool | None, typer.Option("--from-logits/--no-from-logits", help="Whether the outputs are logits.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the train arrays of trained techniques.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of every draw.")] = None,
    scale: Annotated[
        str, typer.Option(metavar="N[,N…]", help="Values become value · scale + offset; 1/255; one a channel.")
    ] = "",
    offset: Annotated[str, typer.Option(metavar="N[,N…]", help="See --scale.")] = "",
) -> None:
    """Compress a model by recipes, prove and measure every result."""
    from squeezeflow.cli import compress as command
    from squeezeflow.cli.numbers import number_list

    order = command.CompressOrder(
        model=model,
        data=data,
        recipes=recipe or (),
        settings=settings or (),
        out=out,
        exports=[item.value for item in export or ()],
        signature=signature,
        loss=loss,
        from_logits=from_logits,
        epochs=epochs,
        seed=seed,
        scale=number_list("--scale", scale),
        offset=number_list("--offset", offset),
    )
    raise typer.Exit(command.run(*_call(context), order))


@app.command(epilog=GLOBAL_HINT)
def up(
    context: typer.Context,
    store: Annotated[
        str,
        typer.Option(
            envvar="SQUEEZEFLOW_STORE",
            metavar="URL",
            help="dir:PATH or s3://KEY:SECRET@HOST:PORT/BUCKET?secure=false; else a folder under SQUEEZEFLOW_HOME.",
        ),
    ] = "",
    port_base: Annotated[
        int | None,
        typer.Option(min=0, max=65531, metavar="N", help="Ports N to N+4, default 7070; 0: free ones."),
    ] = None,
) -> None:
    """Run all services on this machine until Ctrl-C or SIGTERM."""
    from squeezeflow.cli import up as command

    raise typer.Exit(command.run(*_call(context), store_url=store, port_base=port_base))


@app.command(epilog=GLOBAL_HINT)
def inspect(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="FILE|DIGEST", help="A model, here or in the store.")],
    signature: Annotated[str, typer.Option(help="SavedModel: which signature.")] = "",
) -> None:
    """Tell what a model is, and what each technique would do with it."""
    from squeezeflow.cli import inspect as command

    raise typer.Exit(command.run(*_call(context), target, signature=signature))


@app.command(epilog=GLOBAL_HINT)
def serve(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="FILE|DIGEST", help="A TFLite file, here or in the store.")],
    name: Annotated[str, typer.Option(help="The name to serve it under.")],
    contract: Annotated[str, typer.Option(help="Digest of its contract; else the newest on record.")] = "",
) -> None:
    """Serve a model by the Open Inference Protocol; with no server running, until Ctrl-C."""
    from squeezeflow.cli import serve as command

    raise typer.Exit(command.run(*_call(context), target, name=name, contract=contract))


@app.command(epilog=GLOBAL_HINT)
def infer(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A served name, or a TFLite artifact's digest.")],
    data: Annotated[Path, typer.Option(metavar="F.npz", exists=True, help="Arrays x, or the model's input names.")],
    scale: Annotated[str, typer.Option(metavar="N[,N…]", help="Instead of the scale in the model's contract.")] = "",
    offset: Annotated[str, typer.Option(metavar="N[,N…]", help="Instead of the offset in the contract.")] = "",
) -> None:
    """Run a served model on the arrays of a file."""
    from squeezeflow.cli import infer as command
    from squeezeflow.cli.numbers import number_list

    affine = number_list("--scale", scale), number_list("--offset", offset)
    raise typer.Exit(command.run(*_call(context), name, data, scale=affine[0], offset=affine[1]))


@jobs_app.command("list", epilog=GLOBAL_HINT)
def jobs_list(context: typer.Context, page_size: PageSize = 0, page_token: PageToken = "") -> None:
    """List jobs, newest first."""
    from squeezeflow.cli import jobs as command

    raise typer.Exit(command.list_jobs(*_call(context), page_size=page_size, page_token=page_token))


@jobs_app.command("get", epilog=GLOBAL_HINT)
def jobs_get(context: typer.Context, job: JobId) -> None:
    """Show a job as it stands."""
    from squeezeflow.cli import jobs as command

    raise typer.Exit(command.get(*_call(context), job))


@jobs_app.command("watch", epilog=GLOBAL_HINT)
def jobs_watch(context: typer.Context, job: JobId) -> None:
    """Follow a job to its end; Ctrl-C leaves it running."""
    from squeezeflow.cli import jobs as command

    raise typer.Exit(command.watch(*_call(context), job))


@jobs_app.command("cancel", epilog=GLOBAL_HINT)
def jobs_cancel(context: typer.Context, job: JobId) -> None:
    """End a job and its running steps."""
    from squeezeflow.cli import jobs as command

    raise typer.Exit(command.cancel(*_call(context), job))


@artifacts_app.command("list", epilog=GLOBAL_HINT)
def artifacts_list(context: typer.Context, page_size: PageSize = 0, page_token: PageToken = "") -> None:
    """List artifacts, ordered by digest."""
    from squeezeflow.cli import artifacts as command

    raise typer.Exit(command.list_artifacts(*_call(context), page_size=page_size, page_token=page_token))


@artifacts_app.command("get", epilog=GLOBAL_HINT)
def artifacts_get(
    context: typer.Context,
    digest: Annotated[str, typer.Argument(metavar="DIGEST")],
    dest: Annotated[
        Path | None,
        typer.Argument(metavar="[PATH]", help="File or folder to write; else DIGEST's first 12 digits here."),
    ] = None,
) -> None:
    """Write an artifact to a file or folder, verified."""
    from squeezeflow.cli import artifacts as command

    raise typer.Exit(command.get(*_call(context), digest, dest))


@artifacts_app.command("put", epilog=GLOBAL_HINT)
def artifacts_put(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", exists=True)],
    kind: Annotated[
        str, typer.Option(help="keras, hdf5, saved_model, tflite, dataset, …; else told from the file.")
    ] = "",
) -> None:
    """Store a model or dataset and print its digest."""
    from squeezeflow.cli import artifacts as command

    raise typer.Exit(command.put(*_call(context), path, kind))


def _call(context: typer.Context) -> tuple[Settings, Output]:
    settings, output = context.obj
    return settings, output
