"""The signatures of a SavedModel that were not chosen: kept in what is written, and called to see that they work.

Signatures share variables: one that reads a changed kernel has changed with it. So what is written is compared with the
original, loaded once more, whose variables in memory are given the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from squeezeflow.core import figures
from squeezeflow.core.datasets import synthetic_inputs
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import saved_model_source
from squeezeflow.modelkit.saved_kernels import folder_of, variables
from squeezeflow.modelkit.saved_model_source import SavedModelSource
from squeezeflow.modelkit.source import Source

Arrays = Mapping[str, np.ndarray]

SAMPLES = 4
# One model twice in one process; threads may sum in another order.
EQUAL = 1e-5


def names(source: Source) -> list[str]:
    """Gives the signatures of a SavedModel beside the chosen one."""
    return [name for name in saved_model_source.signatures(_graph(source)) if name != source.contract.signature]


def prove(source: Source, written: Path, values: Arrays) -> tuple[str, ...]:
    """Calls every signature but the chosen one with synthetic samples, as it was and as it is written.

    Args:
        source: a SavedModel.
        written: the folder it was written to, with other values for some variables.
        values: these values, by names of `saved_kernels.variables`.

    Gives notes: which of them could not be compared, and why.
    Errors: INVARIANT_BROKEN naming the signature that computes something else, or cannot be called any more.
    """
    others = names(source)
    if not others:
        return ()
    graph = _graph(source)
    before, after = _load(folder_of(source), graph), _load(written, graph)
    clear = _assign(before, [source.contract.signature, *others], source, values)
    notes = []
    for name in others:
        reason = _compare(before, after, name) if clear else "which variables in memory were changed is not clear"
        if reason:
            notes.append(f"signature {name} was written and not compared: {reason}")
    return tuple(notes)


def _graph(source: Source) -> Any:
    return saved_model_source.meta_graph(saved_model_source.read_proto(folder_of(source)))


@dataclass(frozen=True)
class _Loaded:
    folder: Path
    graph: Any
    model: Any

    def signature(self, name: str) -> SavedModelSource:
        """Gives a signature to call. Errors: UNSUPPORTED_INPUT where it takes or gives text."""
        saved_model_source.require_numbers(self.graph, name)
        contract = saved_model_source.contract_of(self.graph, name)
        tags = list(self.graph.meta_info_def.tags)
        return SavedModelSource(self.folder, self.model, self.model.signatures[name], contract, tags, "")


def _load(folder: Path, graph: Any) -> _Loaded:
    return _Loaded(folder, graph, tf.saved_model.load(str(folder), tags=list(graph.meta_info_def.tags)))


def _assign(loaded: _Loaded, signatures: list[str], source: Source, values: Arrays) -> bool:
    """Gives variables in memory the values that were written; False where it is not clear which are meant.

    A variable is known by its old values; a copy that the chosen signature does not read was written anew with it.
    """
    old = {variable.name: variable.values for variable in variables(source) if variable.name in values}
    read = {id(variable) for variable in loaded.model.signatures[signatures[0]].variables}
    found = {id(v): v for name in signatures for v in loaded.model.signatures[name].variables}
    matches = {
        name: [v for v in found.values() if v.shape == array.shape and np.array_equal(v.numpy(), array)]
        for name, array in old.items()
    }
    if any(sum(id(variable) in read for variable in same) != 1 for same in matches.values()):
        return False
    for name, same in matches.items():
        for variable in same:
            variable.assign(values[name])
    return True


def _compare(before: _Loaded, after: _Loaded, name: str) -> str:
    """Compares one signature; gives the reason where that is not possible. Errors: INVARIANT_BROKEN."""
    try:
        original, written = before.signature(name), after.signature(name)
        samples = synthetic_inputs(original.contract, SAMPLES, 0)
        # Called twice, and both as often: what a signature counts or learns is then the same.
        expected = [original.predict(samples) for _ in range(2)]
    except SqueezeflowError as error:
        return error.message
    except Exception as error:
        return f"it does not take synthetic samples ({_one_line(error)})"
    try:
        outputs = [written.predict(samples) for _ in range(2)]
    except Exception as error:
        raise SqueezeflowError(
            "INVARIANT_BROKEN",
            f"signature {name} cannot be called after the model was written again ({_one_line(error)}): save the "
            "model with the chosen signature alone",
        ) from error
    difference, limit = _difference(expected[0], outputs[0])
    if difference <= limit:
        return ""
    if _difference(*expected)[0] > limit:
        return "it gives something else at every call"
    raise SqueezeflowError(
        "INVARIANT_BROKEN",
        f"signature {name} computes something else after the model was written again (max abs diff {difference:.3g}, "
        f"limit {limit:.3g}): save the model with the chosen signature alone",
    )


def _difference(expected: Arrays, outputs: Arrays) -> tuple[float, float]:
    one, other = (
        {name: np.nan_to_num(array.astype(np.float64)) for name, array in a.items()} for a in (expected, outputs)
    )
    largest = max(float(np.abs(array).max(initial=0.0)) for array in one.values())
    return max(figures.max_abs_diff(array, other[name]) for name, array in one.items()), EQUAL * max(1.0, largest)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
