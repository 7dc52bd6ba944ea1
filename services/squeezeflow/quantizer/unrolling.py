"""What the converter gets in place of a loop: the same model, its recurrent layers unrolled.

Representative samples kill the converter (SIGSEGV) where a loop hands a value from step to step as it is, which is how
a recurrent layer's loop reads its sequence: seen for each of six such loops, and for none of seven others. For int16x8
it refuses samples with any loop, and there is no int16 kernel for a fused LSTM. Which of them a model becomes shows in
its float file, that is made first where the trace has a loop: an LSTM that becomes one operator stays as it is in int8.
What is unrolled is compared with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from squeezeflow.core import figures, invariants
from squeezeflow.core.datasets import BoundData
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.step import Report
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import conversion, layers, proof, unrolled
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import step_pb2

# Both compute the same products, and may add in another order. Relative to the largest output.
EQUAL = 1e-5
ATTEMPTS = 5
LOOP = "WHILE"
# Fused layers without a kernel that computes in int16.
WITHOUT_INT16 = frozenset({"UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM"})

Named = Sequence[tuple[str, Any]]
Samples = Callable[[], Iterator[dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Prepared:
    """What is to be converted.

    Attributes:
        source: the model, or the model with layers unrolled; its contract is the model's.
        layers: those that were unrolled, and why.
        steps: their numbers of steps.
        closeness: how close that is to the model.
        looped_bytes: size of the float file with its loops.
    """

    source: Source
    layers: tuple[step_pb2.LayerOutcome, ...] = ()
    steps: frozenset[int] = frozenset()
    closeness: str = ""
    looped_bytes: int = 0

    def samples(self, given: Samples) -> Samples:
        """Gives calibration samples, and each of them once more, moved by half of its steps.

        Every step has ranges of its own: where sequences are filled up with zeros, the last steps would have none, and
        cut off what longer sequences bring.
        """

        def generate() -> Iterator[dict[str, np.ndarray]]:
            for sample in given():
                yield sample
                timed = {name for name, rows in sample.items() if rows.ndim > 1 and rows.shape[1] in self.steps}
                if timed:
                    yield {
                        name: np.roll(rows, rows.shape[1] // 2, axis=1) if name in timed else rows
                        for name, rows in sample.items()
                    }

        return generate if self.layers else given

    def convert(self, converter: Any, target: Path) -> None:
        """Converts; once more where the converter left operators float that it mostly does not.

        Of a SPLIT one of whose results is not needed, as in the first step of an LSTM without a state, it leaves out
        now one and now none, with the same samples (seen: 11 of 32 runs). Errors: as `conversion.convert`.
        """
        for _ in range(ATTEMPTS if self.layers else 1):
            conversion.convert(converter, target)
            if not self.layers or "SPLIT" not in _float_operators(target):
                return

    def told(self, target: Path) -> tuple[str, ...]:
        """Tells how close the unrolled model is, and what unrolling costs in bytes; nothing where nothing is."""
        if not self.layers:
            return ()
        size = target.stat().st_size
        larger = ": small layers take less room with a loop, in mode DYNAMIC" if size > self.looped_bytes else ""
        return (
            self.closeness,
            "every sequence is calibrated with twice, once moved by half of its steps: each step has its own ranges",
            f"every step is written out: {size:,} bytes, where the float file with loops has {self.looped_bytes:,}"
            f"{larger}",
        )


def prepare(source: Source, *, mode: str, bound: BoundData | None, workdir: Path, report: Report) -> Prepared:
    """Gives what the converter can calibrate in an integer mode: most models as they are.

    Errors: UNSUPPORTED_LAYER naming a layer that cannot be unrolled, UNSUPPORTED_OP for a loop that no layer makes,
    OUTPUT_MISMATCH, and those of converting.
    """
    operator, size = _obstacle(source, mode, workdir)
    if not operator:
        return Prepared(source)
    for chosen in _choices(source, operator):
        _require(chosen, operator)
        report(0.1, "unrolling")
        twin = _trace(source, [layer for _, layer in chosen])
        if not _obstacle(twin, mode, workdir)[0]:
            closeness = _compared(source, twin, bound, chosen)
            outcomes = tuple(_outcome(path, layer, operator) for path, layer in chosen)
            counts = frozenset(unrolled.steps(layer) or 0 for _, layer in chosen)
            return Prepared(twin, outcomes, counts, closeness, size)
    raise _refused(source, operator)


def _obstacle(source: Source, mode: str, workdir: Path) -> tuple[str, int]:
    """Names the operator because of which a model cannot be quantized as it is, and gives the size of its float file.

    Empty where it can be quantized.
    """
    if not unrolled.loops_in(source.graph()):
        return "", 0
    path = workdir / "float.tflite"
    conversion.convert(source.converter(), path)
    file, size = TfliteFile.read(path), path.stat().st_size
    path.unlink()
    names = {operator.name for graph in file.subgraphs for operator in graph.operators}
    unfit = {LOOP, *WITHOUT_INT16} if mode == "int16x8" else {LOOP} if _hands_on(file) else set()
    return min(names & unfit, default=""), size


def _hands_on(file: TfliteFile) -> bool:
    """Tells whether a graph besides the main one gives a real value as it was given it."""
    return any(
        graph.tensors[index].dtype == "float32"
        for graph in file.subgraphs[1:]
        for index in set(graph.inputs) & set(graph.outputs)
    )


def _float_operators(path: Path) -> set[str]:
    try:
        return {name.split(" ×")[0] for name in invariants.float_operators(TfliteFile.read(path))}
    except SqueezeflowError:
        # Who reads it next says what is wrong.
        return set()


def _choices(source: Source, operator: str) -> list[Named]:
    """Gives which layers to unroll, in the order to be tried: those that always loop, then all."""
    if source.model is None:
        return []
    looping = [(path, layer) for path, layer in layers.walk(source.model) if unrolled.loops(layer)]
    # An LSTM of tf_keras mostly becomes one operator, which is smaller and quicker than its steps.
    always = [(path, layer) for path, layer in looping if source.keras is None or _kind(layer) != "LSTM"]
    choices = [always, looping] if operator == LOOP and len(always) < len(looping) else [looping]
    return [choice for choice in choices if choice]


def _kind(layer: Any) -> str:
    return type(unrolled.directions(layer)[0]).__name__


def _require(chosen: Named, operator: str) -> None:
    """Refuses layers that cannot be unrolled: UNSUPPORTED_LAYER."""
    for path, layer in chosen:
        if reason := unrolled.reason(layer):
            raise _unsupported(path, layer, operator, reason)
    total = sum(unrolled.cost(layer) for _, layer in chosen)
    if total > unrolled.MOST_STEPS:
        path, layer = max(chosen, key=lambda one: unrolled.cost(one[1]))
        reason = (
            f"the model's recurrent layers take {total} steps together, and at most {unrolled.MOST_STEPS} are written "
            "out: shorten the sequences"
        )
        raise _unsupported(path, layer, operator, reason)


def _trace(source: Source, chosen: Sequence[Any]) -> Source:
    """Gives the model as traced with layers unrolled, under the same contract."""
    # It imports Keras, which SavedModels do without.
    from squeezeflow.modelkit.keras_source import KerasSource

    twin = KerasSource(
        source.model,
        keras3=source.keras is None,
        format=source.format,
        written_by=source.written_by,
        compiled=source.compile_config,
        contract=source.contract,
    )
    # What is compared with the twin must have been traced with its loops.
    source.graph()
    with unrolled.written_out(chosen):
        twin.graph()
    return twin


def _compared(source: Source, twin: Source, bound: BoundData | None, chosen: Named) -> str:
    """Compares the unrolled model with the model on random and on real samples; tells how close it is.

    Errors: OUTPUT_MISMATCH, NON_FINITE_OUTPUT where the model gives no numbers.
    """
    worst, origins = 0.0, []
    for data in [None] if bound is None else [None, bound]:
        samples, origin = proof.draw_samples(source.contract, data, 0)
        expected, outputs = source.predict(samples), twin.predict(samples)
        invariants.require([invariants.finite(expected)])
        for name, values in expected.items():
            largest = float(np.abs(values).max(initial=0.0)) or 1.0
            difference = figures.max_abs_diff(values, outputs[name]) / largest
            if not difference <= EQUAL:
                raise SqueezeflowError(
                    "OUTPUT_MISMATCH",
                    f"output {name} of the model with {', '.join(path for path, _ in chosen)} unrolled differs from "
                    f"that of the model by {difference:.3g} of its largest value (limit {EQUAL:g}, {origin}): use mode "
                    "DYNAMIC",
                    metadata={"output": name, "difference": difference},
                )
            worst = max(worst, difference)
        origins.append(origin)
    return f"unrolled: {' and '.join(origins)}, largest relative difference {worst:.2g}"


def _outcome(path: str, layer: Any, operator: str) -> step_pb2.LayerOutcome:
    count = unrolled.steps(layer)
    both = ", in both directions" if len(unrolled.directions(layer)) > 1 else ""
    return step_pb2.LayerOutcome(
        layer=path,
        class_name=type(layer).__name__,
        applied=True,
        detail=f"unrolled into {count} steps{both}: {_why(operator)}",
    )


def _why(operator: str) -> str:
    if operator == LOOP:
        return "the converter cannot calibrate its loop"
    return f"there is no int16 kernel for {operator}"


def _unsupported(path: str, layer: Any, operator: str, reason: str) -> SqueezeflowError:
    kind = _kind(layer)
    return SqueezeflowError(
        "UNSUPPORTED_LAYER",
        f"layer {path} ({kind}) has to be unrolled, since {_why(operator)}; {reason}, or use mode DYNAMIC",
        metadata={"layer": path, "class_name": type(layer).__name__, "op": operator},
    )


def _refused(source: Source, operator: str) -> SqueezeflowError:
    """Gives the error for a loop that no recurrent layer makes."""
    names = unrolled.loops_in(source.graph())
    place = f" ({', '.join(names[:3])})" if names else ""
    advice = "" if source.model is not None else "give the .keras file that it was exported from, "
    return SqueezeflowError(
        "UNSUPPORTED_OP",
        f"the graph has a {operator}{place}, and {_why(operator)}: {advice}write its steps out, or use mode DYNAMIC",
        metadata={"op": operator, "nodes": ", ".join(names)},
    )
