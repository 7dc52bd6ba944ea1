"""Scans a Keras HDF5 file: its configurations, what would read other files of the machine, and how large it gets."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit.scan_config import scan_config, scan_names

MAX_OBJECTS = 1_000_000
# A dataset takes its whole shape in memory, however little of it is stored.
MAX_RATIO = 200
SMALL = 256 << 20
# Filters that come with h5py; HDF5 loads others as libraries: deflate, shuffle, checksum, szip, n-bit, offset, LZF.
KNOWN_FILTERS = frozenset({1, 2, 3, 4, 5, 6, h5py.h5z.FILTER_LZF})


def scan_hdf5(path: Path) -> list[str]:
    """Gives the findings of a Keras HDF5 file.

    Errors: MALFORMED_MODEL for what is not HDF5, is damaged, or holds weights without a model.
    """
    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
            if config is None:
                raise _malformed("it holds weights but no model configuration: save the whole model, not its weights")
            training = file.attrs.get("training_config")
            compiled = [] if training is None else scan_names(_parsed(training), "training_config")
            return scan_config(_parsed(config)) + compiled + scan_links(path)
    except SqueezeflowError:
        raise
    except Exception as error:
        # h5py raises whatever the damage leads to: OSError, KeyError, RuntimeError, ValueError, UnicodeDecodeError.
        raise _malformed(f"{error or type(error).__name__}") from error


def scan_links(source: Any) -> list[str]:
    """Names links and datasets of an HDF5 file (path or seekable stream) that lie in other files or load libraries.

    Errors: ValueError for too many objects, or values that take far more memory than the file has bytes.
    """
    findings: list[str] = []
    size = source.stat().st_size if isinstance(source, Path) else source.seek(0, io.SEEK_END)
    left, count = max(SMALL, MAX_RATIO * size), 0
    with h5py.File(source, "r") as file:
        pending = [file["/"]]
        seen: set[Any] = set()
        while pending:
            group = pending.pop()
            for name in group:
                count += 1
                if count > MAX_OBJECTS:
                    raise ValueError(f"more than {MAX_OBJECTS} objects")
                link = group.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    findings.append(f"{group.name}/{name}: a link into the file {link.filename}")
                    continue
                item = group.get(name)
                if isinstance(item, h5py.Dataset):
                    left -= item.nbytes
                    if left < 0:
                        raise ValueError(f"its values take more than {max(SMALL, MAX_RATIO * size)} bytes")
                    findings.extend(f"{group.name}/{name}: {what}" for what in _dataset(item))
                if isinstance(item, h5py.Group) and item.id not in seen:
                    seen.add(item.id)
                    pending.append(item)
    return findings


def _dataset(item: h5py.Dataset) -> Iterator[str]:
    if item.external or item.is_virtual:
        yield "values that lie in another file"
    properties = item.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        number = properties.get_filter(index)[0]
        if number not in KNOWN_FILTERS:
            yield f"values behind the filter {number}, for which a library would be loaded"


def _parsed(attribute: Any) -> Any:
    return json.loads(attribute.decode() if isinstance(attribute, bytes) else str(attribute))


def _malformed(cause: str) -> SqueezeflowError:
    first = next((line.strip() for line in cause.splitlines() if line.strip()), "it ends too early")
    return SqueezeflowError(
        "MALFORMED_MODEL",
        f"the HDF5 file cannot be read ({first[:300]}): save the model again and check that the upload is complete",
    )
