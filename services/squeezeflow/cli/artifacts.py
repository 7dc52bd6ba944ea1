"""`squeezeflow artifacts`: what is stored, in and out."""

from __future__ import annotations

from pathlib import Path

from squeezeflow.cli import exits
from squeezeflow.cli.exits import UsageError
from squeezeflow.cli.output import Output
from squeezeflow.cli.session import open_session
from squeezeflow.cli.settings import Settings
from squeezeflow.v1 import artifact_pb2

_NEEDS = frozenset({"orchestrator"})


def list_artifacts(settings: Settings, output: Output, *, page_size: int, page_token: str) -> int:
    """Writes a page of artifacts, ordered by digest."""
    with open_session(settings, output, _NEEDS) as session:
        page = session.client.list_artifacts(page_size=page_size, page_token=page_token)
    from squeezeflow.cli import tables

    output.message(page)
    output.show(tables.artifacts_table(page.artifacts))
    if page.next_page_token:
        output.tell(f"there are more: --page-token {page.next_page_token}")
    return exits.DONE


def get(settings: Settings, output: Output, digest: str, dest: Path | None) -> int:
    """Writes an artifact's bytes to a file or folder; below `dest` under a name of its own where that is a folder."""
    from squeezeflow.client.transfer import default_name

    with open_session(settings, output, _NEEDS) as session:
        artifact = session.client.get_artifact(digest)
        target = dest or Path()
        if target.is_dir():
            target = target / default_name(artifact)
        session.client.download(digest, target)
    output.message(artifact)
    output.show(str(target))
    return exits.DONE


def put(settings: Settings, output: Output, path: Path, kind: str) -> int:
    """Stores a file or folder and writes its artifact."""
    number = _kind(kind) if kind else None
    with open_session(settings, output, _NEEDS) as session:
        artifact = session.client.upload(path, number)
    output.message(artifact)
    output.show(artifact.digest)
    return exits.DONE


def _kind(word: str) -> int:
    prefix = "ARTIFACT_KIND_"
    known = {name.removeprefix(prefix).lower(): number for name, number in artifact_pb2.ArtifactKind.items() if number}
    number = known.get(word.lower().replace("-", "_"))
    if number is None:
        raise UsageError("INVALID_PARAMETER", f"--kind {word}: choose one of {', '.join(known)}")
    return number
