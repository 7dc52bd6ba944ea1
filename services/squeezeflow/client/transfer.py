"""Files and folders to the store and back, through the orchestrator.

The digest comes first: what is stored already is not sent again. What comes back is checked against its digest before
it takes its name, so a half-read artifact is never seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from squeezeflow.core import artifacts
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import artifact_pb2, artifacts_pb2

CHUNK = 1 << 20
# Slowest transfer that is waited for; what is slower is a connection that hangs.
_BYTES_A_SECOND = 1 << 20
_PATIENCE = 60.0

OnBytes = Callable[[int], None]
Role = Literal["model", "data"]


def role_of(path: Path) -> Role:
    """Gives `data` for an `.npz` file or a folder of `.npy` files, `model` for everything else."""
    if path.is_dir():
        return "data" if any(path.glob("*.npy")) else "model"
    return "data" if path.suffix.lower() == ".npz" else "model"


def describe(path: Path, kind: int | None, role: Role | None = None) -> artifacts_pb2.WriteArtifactHeader:
    """Gives what an upload of a file or folder announces: kind, bytes to come, digest."""
    if not path.exists():
        raise SqueezeflowError("NOT_FOUND", f"there is no file or folder {path}: correct the path")
    if kind is None:
        kind = artifacts.kind_of_path(path, role=role or role_of(path))
    digest = artifacts.digest_of(kind, path)
    size = artifacts.tar_size(path) if path.is_dir() else path.stat().st_size
    return artifacts_pb2.WriteArtifactHeader(kind=kind, size_bytes=size, digest=digest)  # type: ignore[arg-type]


def upload_messages(
    header: artifacts_pb2.WriteArtifactHeader, path: Path, on_bytes: OnBytes | None
) -> Iterator[artifacts_pb2.WriteArtifactRequest]:
    """Gives the messages of an upload: the header, then chunks of at most 1 MiB."""
    yield artifacts_pb2.WriteArtifactRequest(header=header)
    for piece in artifacts.folder_tar(path) if path.is_dir() else _file_chunks(path):
        for start in range(0, len(piece), CHUNK):
            chunk = piece[start : start + CHUNK]
            yield artifacts_pb2.WriteArtifactRequest(chunk=bytes(chunk))
            if on_bytes is not None:
                on_bytes(len(chunk))


def patience(size_bytes: int) -> float:
    """Gives the seconds after which a transfer of so many bytes counts as hung."""
    return _PATIENCE + size_bytes / _BYTES_A_SECOND


def receive(artifact: artifact_pb2.Artifact, chunks: Iterable[bytes], dest: Path, *, replace: bool = False) -> None:
    """Writes an artifact to `dest`, under a temporary name until its digest is proved.

    Raises:
        SqueezeflowError: DIGEST_MISMATCH; INVALID_PARAMETER where `dest` is in the way and is not to be replaced. A
            file always replaces a file.
    """
    folder = artifact.kind in artifacts.FOLDER_KINDS
    if dest.is_dir() and (not folder or (any(dest.iterdir()) and not replace)):
        raise SqueezeflowError("INVALID_PARAMETER", f"{dest} is a folder that is there already: choose another place")
    if folder and dest.is_file():
        raise SqueezeflowError("INVALID_PARAMETER", f"{dest} is a file, the artifact a folder: choose another place")
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".squeezeflow-", dir=dest.parent) as scratch:
        part = Path(scratch) / "part"
        if folder:
            artifacts.unpack_tar(chunks, part, max_bytes=max(artifact.size_bytes, 1))
        else:
            _write(part, chunks, artifact.size_bytes)
        found = artifacts.digest_of(artifact.kind, part)
        if found != artifact.digest:
            raise SqueezeflowError(
                "DIGEST_MISMATCH",
                f"the bytes that came are {found}, not {artifact.digest}: fetch them again",
            )
        if folder and dest.is_dir():
            dest.rename(Path(scratch) / "before")
        part.replace(dest)


def default_name(artifact: artifact_pb2.Artifact) -> str:
    """Gives a file name for an artifact: the first 12 digits of its digest, and the extension of its kind."""
    extensions = {
        artifact_pb2.ARTIFACT_KIND_KERAS: ".keras",
        artifact_pb2.ARTIFACT_KIND_HDF5: ".h5",
        artifact_pb2.ARTIFACT_KIND_SAVED_MODEL: ".savedmodel",
        artifact_pb2.ARTIFACT_KIND_TFLITE: ".tflite",
        artifact_pb2.ARTIFACT_KIND_DATASET: ".npz",
        artifact_pb2.ARTIFACT_KIND_DATASET_FOLDER: ".data",
        artifact_pb2.ARTIFACT_KIND_CONTRACT: ".contract.json",
        artifact_pb2.ARTIFACT_KIND_LOGS: ".logs",
    }
    return artifact.digest[:12] + extensions.get(artifact.kind, "")


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _write(part: Path, chunks: Iterable[bytes], limit: int) -> None:
    written = 0
    with part.open("wb") as file:
        for chunk in chunks:
            written += len(chunk)
            if written > limit:
                raise SqueezeflowError("DIGEST_MISMATCH", "more bytes came than were announced: fetch them again")
            file.write(chunk)
