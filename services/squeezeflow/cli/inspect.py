"""`squeezeflow inspect`: what a model is, and what each technique would do with it."""

from __future__ import annotations

from collections.abc import Iterator

from squeezeflow.cli import exits
from squeezeflow.cli.output import Output
from squeezeflow.cli.session import open_session
from squeezeflow.cli.settings import Settings
from squeezeflow.cli.targets import check_target, digest_of_target
from squeezeflow.v1 import contract_pb2, model_pb2


def run(settings: Settings, output: Output, target: str, *, signature: str) -> int:
    """Writes a model's description."""
    check_target(target)
    with open_session(settings, output, frozenset({"orchestrator", "converter"})) as session:
        digest = digest_of_target(session.client, target)
        session.wait_for("converter")
        description = session.client.describe(digest, signature=signature)
    output.message(description)
    _show(output, description)
    return exits.DONE


def heading(description: model_pb2.ModelDescription) -> Iterator[str]:
    """Gives the lines above the tables."""
    from squeezeflow.cli.tables import size

    sizes = description.sizes
    yield f"{description.format}{f', written by {description.written_by}' if description.written_by else ''}"
    yield f"digest      {description.artifact.digest}"
    yield f"size        {size(sizes.raw_bytes)} raw, {size(sizes.deflated_bytes)} deflated"
    if description.parameters:
        yield f"parameters  {description.parameters:,}"
    if description.operators:
        yield f"MACs        {description.macs:,}"
        yield f"arena peak  {size(description.arena_peak_bytes)}, planned without delegates"
    for signature in description.signatures:
        yield f"signature   {signature}"
    for tensor in description.contract.inputs:
        yield f"input       {_tensor(tensor)}"
    for tensor in description.contract.outputs:
        yield f"output      {_tensor(tensor)}"
    for note in description.notes:
        yield f"note        {note}"
    for finding in description.findings:
        yield f"refused     {finding}"


def _show(output: Output, description: model_pb2.ModelDescription) -> None:
    from squeezeflow.cli.model_tables import model_tables

    output.show(*heading(description))
    for table in model_tables(description):
        output.show("", table)


def _tensor(tensor: contract_pb2.TensorContract) -> str:
    from squeezeflow.cli.tables import shape

    text = f"{tensor.name} {tensor.dtype} {shape(tensor.shape)}"
    if tensor.HasField("quantization"):
        text += f", scale {tensor.quantization.scale:.6g}, zero point {tensor.quantization.zero_point}"
    return f"{text}, {tensor.meaning}" if tensor.meaning else text
