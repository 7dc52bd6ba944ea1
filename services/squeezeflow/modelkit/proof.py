"""Proof that a produced file is the model it was made from: allocated, invoked in LiteRT, compared with its source.

Conversion can succeed and still be wrong. So every file is run on samples before its digest leaves the service, its
outputs are compared with the source's, and the names of its signature are matched with the source's by their values: a
name alone proves nothing where two outputs have one shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from squeezeflow.core import contracts, figures, invariants
from squeezeflow.core.contracts import PROBABILITY_OPS
from squeezeflow.core.datasets import BoundData, synthetic_inputs
from squeezeflow.core.litert import Runner
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import locating, matching
from squeezeflow.modelkit.locating import Compared
from squeezeflow.modelkit.source import Source
from squeezeflow.v1 import contract_pb2, step_pb2

SAMPLES = 32
# Of other sizes than those 32, where a dataset has several.
FURTHER_SAMPLES = 16
GOLDEN_SAMPLES = 4
GOLDEN_BYTES = 64 << 10

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Proof:
    """What was proved about a file.

    Attributes:
        contract: of the file, under the source's names.
        invariants: `finite`, `alive`, `close`; all hold.
        metrics: `max_abs_diff`, `sqnr_db`, of the worst output where there are several; of a TFLite file also
            `parameters`, `macs`, `arena_peak_bytes`.
        notes: which samples were used, and what the metrics of the file leave out.
    """

    contract: contract_pb2.Contract
    invariants: tuple[step_pb2.Invariant, ...]
    metrics: Mapping[str, step_pb2.Metric]
    notes: tuple[str, ...]


def prove(
    source: Source,
    tflite: Path,
    *,
    bound: BoundData | None,
    mode: str,
    min_sqnr_db: float = 5.0,
    seed: int = 0,
    threads: int = 1,
) -> Proof:
    """Proves a TFLite file against its source.

    Args:
        source: what it must be equal to; a trained technique gives its own Keras model.
        tflite: the file.
        bound: the job's data; None: synthetic samples by seed.
        mode: `float32`, `float16`, `dynamic`, `int8`: decides how close is close.
        min_sqnr_db: quantized modes only.
        seed: of the draw of samples.
        threads: of the interpreter.

    Errors: UNSUPPORTED_OP (no kernel), MALFORMED_MODEL, NON_FINITE_OUTPUT, OUTPUT_MISMATCH with the numbers,
    INVARIANT_BROKEN.
    """
    samples, origin = draw_samples(source.contract, bound, seed)
    expected = source.predict(samples)
    file = TfliteFile.read(tflite)
    guessed = matching.by_signature(source, file)
    runner = Runner(tflite, guessed, threads=threads)
    contract, outputs = matching.by_value(guessed, runner.invoke, samples, expected)
    every_expected, every_output, sizes = _at_other_sizes(source, tflite, contract, bound, seed, expected, outputs)
    for tensor in contract.outputs:
        if not tensor.meaning and file.computing_operator(file.output_names[tensor.signature_name]) in PROBABILITY_OPS:
            tensor.meaning = "probabilities"
    steps = {t.name: file.output_step(file.output_names[t.signature_name]) for t in contract.outputs}
    # The source's weights are needed only to tell whether a zero kernel was zero before.
    zeroed = any(weight.zeros == weight.tensor.size for weight in file.weights)
    checked = [
        invariants.finite(every_output),
        invariants.alive(
            every_expected,
            every_output,
            kernels=file,
            source_kernels=source.kernels() if zeroed else {},
            output_steps=steps,
        ),
        invariants.close(every_expected, every_output, mode=mode, min_sqnr_db=min_sqnr_db),
    ]
    compared = Compared(samples, expected, outputs)
    proved = invariants.require(
        locating.in_file(checked, source, file, contract, compared, mode=mode, min_sqnr_db=min_sqnr_db, threads=threads)
    )
    add_data(contract, bound)
    add_golden_samples(contract, samples, expected)
    metrics = {**differences(every_expected, every_output), **accounting(file)}
    return Proof(contract, proved, metrics, (origin, *sizes, *file.accounting_notes))


def _at_other_sizes(
    source: Source,
    tflite: Path,
    contract: contract_pb2.Contract,
    bound: BoundData | None,
    seed: int,
    expected: Outputs,
    outputs: Outputs,
) -> tuple[Outputs, Outputs, tuple[str, ...]]:
    """Adds what both give for samples of other sizes, where the data has some, and a note that tells how many."""
    further = bound.further_samples(FURTHER_SAMPLES, seed) if bound else []
    if not further:
        return expected, outputs, ()
    runner = Runner(tflite, contract)
    count = sum(len(next(iter(samples.values()))) for samples in further)
    return (
        _joined([expected, *(source.predict(samples) for samples in further)]),
        _joined([outputs, *(runner.invoke(samples) for samples in further)]),
        (f"and on {count} samples of {len(further)} other sizes",),
    )


def _joined(several: Sequence[Outputs]) -> Outputs:
    """Puts outputs for different samples together; where their sizes differ, pixel after pixel."""
    joined = {}
    for name in several[0]:
        arrays = [outputs[name] for outputs in several]
        if len({array.shape[1:] for array in arrays}) > 1:
            channels = {array.shape[-1] for array in arrays}
            arrays = [array.reshape((-1, *channels) if len(channels) == 1 else -1) for array in arrays]
        joined[name] = np.concatenate(arrays)
    return joined


def prove_same(source: Source, other: Source, *, bound: BoundData | None, seed: int = 0) -> Proof:
    """Proves that a model in another format, read back, computes what its source does, as closely as float32 allows.

    Args:
        source, other: the model, and what it was written as; the contract is the other's.
        bound, seed: as in `prove`.
    Errors: NON_FINITE_OUTPUT, OUTPUT_MISMATCH with the numbers, INVARIANT_BROKEN.
    """
    samples, origin = draw_samples(source.contract, bound, seed)
    expected = source.predict(samples)
    inputs = _renamed(source.signature_inputs, [tensor.name for tensor in other.contract.inputs])
    outputs = _renamed(source.signature_outputs, [tensor.name for tensor in other.contract.outputs])
    samples = {inputs[name]: array for name, array in samples.items()}
    expected = {outputs[name]: array for name, array in expected.items()}
    found = other.predict(samples)
    checked = [
        invariants.finite(found),
        invariants.alive(expected, found, kernels=other.kernels(), source_kernels=source.kernels()),
        invariants.close(expected, found, mode="float32"),
    ]
    proved = invariants.require(locating.in_model(checked, other, Compared(samples, expected, found), source))
    contract = contract_pb2.Contract()
    contract.CopyFrom(other.contract)
    for tensor in source.contract.outputs:
        next(t for t in contract.outputs if t.name == outputs[tensor.name]).meaning = tensor.meaning
    add_data(contract, bound)
    add_golden_samples(contract, samples, expected)
    return Proof(contract, proved, differences(expected, found), (origin,))


def _renamed(signature_names: Mapping[str, str], names: Sequence[str]) -> Mapping[str, str]:
    """Maps the source's names to those of what was written: the same, except where a signature cannot hold them."""
    return {name: name for name in signature_names} if set(signature_names) == set(names) else signature_names


def differences(expected: Outputs, outputs: Outputs) -> dict[str, step_pb2.Metric]:
    """Gives `max_abs_diff` and `sqnr_db` of the worst output."""
    samples = len(next(iter(expected.values()), ()))
    difference = max(figures.max_abs_diff(values, outputs[name]) for name, values in expected.items())
    ratio = min(figures.sqnr_db(values, outputs[name]) for name, values in expected.items())
    return {
        "max_abs_diff": step_pb2.Metric(value=difference, samples=samples),
        "sqnr_db": step_pb2.Metric(value=ratio, samples=samples),
    }


def accounting(file: TfliteFile) -> dict[str, step_pb2.Metric]:
    """Gives what a file costs wherever it runs: `parameters`, `macs`, `arena_peak_bytes`."""
    return {
        "parameters": step_pb2.Metric(value=file.parameters),
        "macs": step_pb2.Metric(value=file.macs),
        "arena_peak_bytes": step_pb2.Metric(value=file.arena_peak_bytes),
    }


def draw_samples(
    contract: contract_pb2.Contract, bound: BoundData | None, seed: int
) -> tuple[dict[str, np.ndarray], str]:
    """Gives a batch of samples for a comparison, and a note that says where they are from."""
    if bound is None:
        return synthetic_inputs(contract, SAMPLES, seed), f"compared on {SAMPLES} synthetic samples (seed {seed})"
    samples, split = bound.samples(SAMPLES, seed)
    count = len(next(iter(samples.values())))
    return samples, f"compared on {count} samples of {split} (seed {seed})"


def add_data(contract: contract_pb2.Contract, bound: BoundData | None) -> None:
    """Puts the labels and the affine of the job's data into a contract."""
    if bound is None:
        return
    contract.labels[:] = bound.labels
    if bound.affine is not None:
        for tensor in contract.inputs:
            tensor.affine.CopyFrom(bound.affine)


def add_golden_samples(contract: contract_pb2.Contract, samples: Outputs, expected: Outputs) -> None:
    """Puts the first samples and the source's outputs into a contract, where they are small."""
    rows = min(len(array) for array in [*samples.values(), *expected.values()])
    for row in range(min(GOLDEN_SAMPLES, rows)):
        part = slice(row, row + 1)
        size = sum(array[part].nbytes for array in [*samples.values(), *expected.values()])
        if size > GOLDEN_BYTES:
            return
        contract.golden_samples.add(
            inputs={name: contracts.tensor_value(array[part]) for name, array in samples.items()},
            outputs={name: contracts.tensor_value(array[part]) for name, array in expected.items()},
        )
