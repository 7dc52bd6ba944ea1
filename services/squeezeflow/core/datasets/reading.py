"""What is in a dataset file: the header of every array at once, its values on demand.

Headers are checked against the bytes that are there before anything is allocated, and nothing is ever unpickled.
Arrays of a folder are memory-mapped, so that data larger than memory can be read by rows; those of an `.npz` are read
whole, once.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.errors import SqueezeflowError

Array = npt.NDArray[Any]

# Longer headers belong to structured arrays with many fields, which no model takes.
HEADER_BYTES = 1 << 16
CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class StoredArray:
    """One array of a dataset: its header, and its values when they are asked for."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    load: Callable[[], Array] = field(repr=False, compare=False)

    @cached_property
    def values(self) -> Array:
        """The values: memory-mapped from a folder, read once from an `.npz`. Errors: DATA_MISMATCH."""
        try:
            values = self.load()
        except Exception as error:  # whatever foreign bytes raise in zlib, zipfile or numpy means the same thing
            raise unreadable(self.name, error) from error
        if values.shape != self.shape or values.dtype != self.dtype:
            raise mismatch(f"{self.name} changed while it was read: do not write to the dataset", array=self.name)
        return values

    def chunks(self) -> Iterator[tuple[int, Array]]:
        """Yields (first row, rows) in pieces of about 16 MiB."""
        row_bytes = max(1, self.dtype.itemsize * math.prod(self.shape[1:]))
        step = max(1, CHUNK_BYTES // row_bytes)
        for start in range(0, self.shape[0], step):
            yield start, np.asarray(self.values[start : start + step])


def mismatch(message: str, **metadata: object) -> SqueezeflowError:
    """Gives a DATA_MISMATCH."""
    return SqueezeflowError("DATA_MISMATCH", message, metadata=metadata)


def unreadable(name: str, error: Exception) -> SqueezeflowError:
    """Gives the DATA_MISMATCH of an array whose bytes cannot be read."""
    lines = str(error).splitlines()
    why = lines[0] if lines else type(error).__name__
    return mismatch(f"array {name} cannot be read ({why}): write it again with numpy.save or numpy.savez", array=name)


def place(row: int, position: Sequence[int]) -> str:
    """Gives the index of a bad value as it is printed: `[17, 3, 0]`."""
    return str([row + int(position[0]), *(int(i) for i in position[1:])])


def read_arrays(path: Path) -> dict[str, StoredArray]:
    """Gives the arrays of an `.npz` file or a folder of `.npy` files by name.

    Errors: DATA_MISMATCH for anything else, for unreadable or object arrays, and for headers that do not fit the bytes.
    """
    if path.is_dir():
        arrays = {file.stem: _from_file(file) for file in sorted(path.iterdir()) if file.suffix == ".npy"}
    else:
        arrays = _from_npz(path)
    if not arrays:
        raise mismatch(f"{path.name} holds no arrays: give an .npz file, or a folder of .npy files")
    return arrays


def _from_npz(path: Path) -> dict[str, StoredArray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            names = [info.filename.removesuffix(".npy") for info in members]
            for name in names:
                if names.count(name) > 1:
                    raise mismatch(f"{path.name} holds array {name} twice: write each once", array=name)
            return {name: _from_member(path, archive, name, info) for name, info in zip(names, members, strict=True)}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        why = str(error) or type(error).__name__
        raise mismatch(f"{path.name} is not a readable .npz file ({why}): write it with numpy.savez") from error


def _from_member(path: Path, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> StoredArray:
    def load() -> Array:
        with zipfile.ZipFile(path) as again, again.open(info.filename) as stream:
            values: Array = np.lib.format.read_array(stream, allow_pickle=False)
            # zipfile compares the checksum when it meets the end of the member, not before.
            stream.read()
            return values

    try:
        with archive.open(info) as stream:
            dtype, shape, data_offset = _read_header(stream)
    except Exception as error:  # as above: foreign bytes
        raise unreadable(name, error) from error
    return _checked(name, dtype, shape, info.file_size - data_offset, load)


def _from_file(path: Path) -> StoredArray:
    def load() -> Array:
        if math.prod(shape) == 0:
            return np.empty(shape, dtype)  # nothing to map
        return np.lib.format.open_memmap(path, mode="r")

    try:
        with path.open("rb") as stream:
            dtype, shape, data_offset = _read_header(stream)
    except Exception as error:  # as above: foreign bytes
        raise unreadable(path.stem, error) from error
    return _checked(path.stem, dtype, shape, path.stat().st_size - data_offset, load)


def _read_header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    head = io.BytesIO(stream.read(HEADER_BYTES))
    version = np.lib.format.read_magic(head)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(head)
    else:
        raise ValueError(f"version {version} of the .npy format")
    return dtype, tuple(int(size) for size in shape), head.tell()


def _checked(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], data_bytes: int, load: Callable[[], Array]
) -> StoredArray:
    if dtype.hasobject:
        raise mismatch(f"array {name} holds Python objects: save numbers, or names as dtype str", array=name)
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != data_bytes:
        raise mismatch(
            f"array {name} says {dtype} of shape {shape} but holds {data_bytes} bytes: write it again", array=name
        )
    return StoredArray(name, dtype, shape, load)
