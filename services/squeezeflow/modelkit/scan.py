"""Looks for code in a model before anything of it is loaded.

Loading runs what a model carries: Lambda layers, functions that a configuration names, initialisers of a SavedModel.
`scan` reads files and runs nothing; what it cannot vouch for is a finding, and a model with findings is never loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import ArtifactPath
from squeezeflow.modelkit import scan_archive, scan_hdf5
from squeezeflow.v1 import artifact_pb2

# A message is one line; all findings are in the metadata.
_SHOWN = 3


def scan(model: ArtifactPath) -> list[str]:
    """Gives what is found in a model, one line each; empty: clean. A TFLite file has no place for code.

    Errors: MALFORMED_MODEL (empty, truncated or damaged files, archives that climb or inflate).
    """
    if model.kind == artifact_pb2.ARTIFACT_KIND_KERAS:
        return scan_archive.scan_archive(model.path)
    if model.kind == artifact_pb2.ARTIFACT_KIND_HDF5:
        return scan_hdf5.scan_hdf5(model.path)
    if model.kind == artifact_pb2.ARTIFACT_KIND_SAVED_MODEL:
        from squeezeflow.modelkit import scan_graph

        return scan_graph.scan_saved_model(model.path)
    return []


def refuse(findings: Sequence[str]) -> None:
    """Refuses a model with findings.

    Errors: CODE_IN_MODEL, with all findings in the metadata.
    """
    if not findings:
        return
    shown = "; ".join(findings[:_SHOWN]) + (f"; and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else "")
    raise SqueezeflowError(
        "CODE_IN_MODEL",
        f"the model carries code, which is never run ({shown}): build it from Keras layers alone and save it again",
        metadata={"findings": "\n".join(findings)},
    )
