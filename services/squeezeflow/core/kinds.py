"""Kinds of artifacts: what they are called on disk, and how a path shows its kind by name and leading bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import artifact_pb2
from squeezeflow.v1.artifact_pb2 import (
    ARTIFACT_KIND_CONTRACT,
    ARTIFACT_KIND_DATASET,
    ARTIFACT_KIND_DATASET_FOLDER,
    ARTIFACT_KIND_HDF5,
    ARTIFACT_KIND_KERAS,
    ARTIFACT_KIND_LOGS,
    ARTIFACT_KIND_SAVED_MODEL,
    ARTIFACT_KIND_TFLITE,
)

KERAS_KINDS: frozenset[int] = frozenset({ARTIFACT_KIND_KERAS, ARTIFACT_KIND_HDF5})
MODEL_KINDS: frozenset[int] = KERAS_KINDS | {ARTIFACT_KIND_SAVED_MODEL, ARTIFACT_KIND_TFLITE}
DATA_KINDS: frozenset[int] = frozenset({ARTIFACT_KIND_DATASET, ARTIFACT_KIND_DATASET_FOLDER})
FOLDER_KINDS: frozenset[int] = frozenset({ARTIFACT_KIND_SAVED_MODEL, ARTIFACT_KIND_DATASET_FOLDER, ARTIFACT_KIND_LOGS})

_FILE_NAMES: dict[int, str] = {
    ARTIFACT_KIND_KERAS: "model.keras",
    ARTIFACT_KIND_HDF5: "model.h5",
    ARTIFACT_KIND_SAVED_MODEL: "model",
    ARTIFACT_KIND_TFLITE: "model.tflite",
    ARTIFACT_KIND_DATASET: "data.npz",
    ARTIFACT_KIND_DATASET_FOLDER: "data",
    ARTIFACT_KIND_LOGS: "logs",
    ARTIFACT_KIND_CONTRACT: "contract.json",
}
_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"
# By superblock version: where the width of addresses stands, and the first of them (the third is the end of file).
_HDF5_LAYOUTS = {0: (13, 24), 1: (13, 28), 2: (9, 12), 3: (9, 12)}
_TFLITE = b"TFL3"
_HEAD_BYTES = 64
_MODEL_FORMS = "give a .keras, .h5 or .tflite file, or a SavedModel folder"
_DATA_FORMS = "give an .npz file, or a folder of .npy files"


def kind_word(kind: int) -> str:
    """Gives the bare word of a kind: `KERAS`; INVALID_PARAMETER when there is no such kind."""
    if kind not in _FILE_NAMES:
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"artifact kind {kind} is unknown; use one of ArtifactKind",
            fields=[("kind", "unknown")],
        )
    return artifact_pb2.ArtifactKind.Name(kind).removeprefix("ARTIFACT_KIND_")


def kind_named(word: str) -> int:
    """Gives the kind of a bare word; ValueError when there is none."""
    kind = artifact_pb2.ArtifactKind.Value(f"ARTIFACT_KIND_{word}")
    if kind not in _FILE_NAMES:
        raise ValueError(f"{word} is no kind")
    return kind


def file_name(kind: int) -> str:
    """Gives the name that an artifact of a kind has on disk: `model.keras`, `model`, `data.npz`."""
    return _FILE_NAMES[kind]


def kind_of_path(path: Path, *, role: Literal["model", "data"]) -> int:
    """Tells the `ArtifactKind` of a file or folder, by its name and its leading bytes.

    Raises:
        SqueezeflowError: NOT_FOUND; for a model UNSUPPORTED_INPUT (another format) and MALFORMED_MODEL (empty,
            truncated, not what its name says); for data DATA_MISMATCH.
    """
    if not path.exists():
        raise SqueezeflowError("NOT_FOUND", f"{path} does not exist")
    if role == "data":
        return _data_kind(path)
    return _model_folder_kind(path) if path.is_dir() else _model_file_kind(path)


def _model_folder_kind(path: Path) -> int:
    graph = path / "saved_model.pb"
    if graph.is_file():
        if not graph.stat().st_size:
            raise _malformed(path, "its saved_model.pb is empty")
        return ARTIFACT_KIND_SAVED_MODEL
    if (path / "saved_model.pbtxt").exists():
        raise _unsupported(path, "is a SavedModel in text form; save it again in binary form")
    if (path / "config.json").exists() and any(path.glob("*.weights.h5")):
        raise _unsupported(path, "is an unpacked .keras archive; give the .keras file itself")
    raise _unsupported(path, f"is a folder without saved_model.pb; {_MODEL_FORMS}")


def _model_file_kind(path: Path) -> int:
    head = _head(path)
    suffix = path.suffix.lower()
    if not head:
        raise _malformed(path, "it is empty")
    if head.startswith(_HDF5):
        _check_hdf5_length(path, head)
        return ARTIFACT_KIND_HDF5
    if head[4:8] == _TFLITE:
        return ARTIFACT_KIND_TFLITE
    if head.startswith(_ZIP):
        return _zip_kind(path, suffix)
    if suffix in (".keras", ".h5", ".hdf5", ".tflite"):
        raise _malformed(path, f"its first bytes are not those of a {suffix} file; it is truncated or something else")
    if path.name == "saved_model.pb":
        raise _unsupported(path, f"is part of a SavedModel; give its folder {path.parent}")
    raise _unsupported(path, f"is of an unknown format; {_MODEL_FORMS}")


def _zip_kind(path: Path, suffix: str) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _malformed(path, f"the archive cannot be read ({error}); it is truncated or damaged") from error
    if "config.json" in names:
        return ARTIFACT_KIND_KERAS
    if suffix == ".keras":
        raise _malformed(path, "the archive holds no config.json; save the model again")
    if names and all(name.endswith(".npy") for name in names):
        raise _unsupported(path, f"is a dataset, no model; {_MODEL_FORMS}")
    raise _unsupported(path, f"is a zip archive of something else; {_MODEL_FORMS}")


def _data_kind(path: Path) -> int:
    if path.is_dir():
        if not any(path.glob("*.npy")):
            raise _mismatch(path, f"is a folder without .npy files; {_DATA_FORMS}")
        return ARTIFACT_KIND_DATASET_FOLDER
    head = _head(path)
    if not head:
        raise _mismatch(path, "is empty; save the arrays again")
    if head.startswith(b"\x93NUMPY"):
        raise _mismatch(path, "is one array without a name; save it as .npz (numpy.savez) under x_train, y_train, …")
    if not head.startswith(_ZIP):
        raise _mismatch(path, f"is no .npz file; {_DATA_FORMS}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _mismatch(path, f"cannot be read ({error}); it is truncated or damaged, save it again") from error
    if not names or not all(name.endswith(".npy") for name in names):
        raise _mismatch(path, f"is a zip archive of other things than arrays; {_DATA_FORMS}")
    return ARTIFACT_KIND_DATASET


def _check_hdf5_length(path: Path, head: bytes) -> None:
    """Holds the file's length against the end of file in its superblock, as the HDF5 library does (format, II.A)."""
    width_at, addresses_at = _HDF5_LAYOUTS.get(head[8] if len(head) == _HEAD_BYTES else -1, (0, 0))
    if not width_at:
        raise _malformed(path, "its HDF5 superblock cannot be read; it is truncated or damaged, copy it again")
    width = head[width_at]
    end_at = addresses_at + 2 * width
    end = int.from_bytes(head[end_at : end_at + width], "little")
    size = path.stat().st_size
    if size < end:
        raise _malformed(path, f"it has {size} bytes of {end}; it is truncated, copy it again")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _malformed(path: Path, what: str) -> SqueezeflowError:
    return SqueezeflowError("MALFORMED_MODEL", f"{path.name} cannot be read: {what}", metadata={"path": path.name})


def _unsupported(path: Path, what: str) -> SqueezeflowError:
    return SqueezeflowError("UNSUPPORTED_INPUT", f"{path.name} {what}", metadata={"path": path.name})


def _mismatch(path: Path, what: str) -> SqueezeflowError:
    return SqueezeflowError("DATA_MISMATCH", f"{path.name} {what}", metadata={"path": path.name})
