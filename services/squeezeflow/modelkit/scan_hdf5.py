"""Scans a Keras HDF5 file: its model configuration, and links that would read other files of the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit.scan_config import scan_config

MAX_OBJECTS = 1_000_000


def scan_hdf5(path: Path) -> list[str]:
    """Gives the findings of a Keras HDF5 file.

    Errors: MALFORMED_MODEL for what is not HDF5, is damaged, or holds weights without a model.
    """
    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
            if config is None:
                raise _malformed("it holds weights but no model configuration: save the whole model, not its weights")
            text = config.decode() if isinstance(config, bytes) else str(config)
            return scan_config(json.loads(text)) + scan_links(path)
    except SqueezeflowError:
        raise
    except Exception as error:
        # h5py raises whatever the damage leads to: OSError, KeyError, RuntimeError, ValueError, UnicodeDecodeError.
        raise _malformed(f"{error or type(error).__name__}") from error


def scan_links(source: Any) -> list[str]:
    """Names links and datasets of an HDF5 file (path or seekable stream) that lie in other files."""
    findings: list[str] = []
    count = 0
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
                if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                    findings.append(f"{group.name}/{name}: values that lie in another file")
                if isinstance(item, h5py.Group) and item.id not in seen:
                    seen.add(item.id)
                    pending.append(item)
    return findings


def _malformed(cause: str) -> SqueezeflowError:
    first = next((line.strip() for line in cause.splitlines() if line.strip()), "it ends too early")
    return SqueezeflowError(
        "MALFORMED_MODEL",
        f"the HDF5 file cannot be read ({first[:300]}): save the model again and check that the upload is complete",
    )
