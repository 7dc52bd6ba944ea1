"""Quantization-aware training (Jacob et al. 2018, arXiv:1712.05877), by TFMOT; plain, or preserving zeros and clusters.

The model is fine-tuned with the rounding of int8 in its forward pass and converted with the ranges it learnt. TFMOT
loses layers, zeros and clusters without a word where it meets a model it was not written for; so the model is flattened
and laid out for it first, and what was promised is looked up in the final file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from squeezeflow.core import invariants
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.modelkit import bridge, clustered, conversion, data, finetune, keras_source, proof, pruned, threads
from squeezeflow.modelkit.flatten import flatten
from squeezeflow.modelkit.quantizable import KERNELS
from squeezeflow.modelkit.source import Source, open_source
from squeezeflow.quantizer.quantized_layers import LayerPlan, plan_layers
from squeezeflow.quantizer.ranges import start_ranges
from squeezeflow.quantizer.wrapping import finish, wrap
from squeezeflow.v1 import artifact_pb2, step_pb2, technique_pb2

# What the file takes and gives → the word that proofs have for it, and the type.
MODES = {
    technique_pb2.TrainQuantized.INPUT_OUTPUT_FLOAT32: ("int8", tf.float32),
    technique_pb2.TrainQuantized.INPUT_OUTPUT_INT8: ("int8_io", tf.int8),
    technique_pb2.TrainQuantized.INPUT_OUTPUT_UINT8: ("uint8_io", tf.uint8),
}


def run(params: technique_pb2.TrainQuantized, inputs: StepInputs, report: Report) -> StepOutputs:
    """Trains a Keras model with fake quantization and writes `model.tflite` into the step's folder.

    Errors: INVALID_PARAMETER (a pattern that names no layer, nothing to preserve, integer inputs and outputs with
    layers left float, a loss that cannot be inferred), UNSUPPORTED_INPUT (not a Keras model), UNSUPPORTED_LAYER (no
    layer with a kernel can be quantized; each is named with the reason), DATA_MISSING (no train samples),
    DATA_MISMATCH, NON_FINITE_OUTPUT, OUTPUT_MISMATCH (below `min_sqnr_db`), INVARIANT_BROKEN naming the layer.
    """
    threads.limit(inputs.threads)
    began = time.perf_counter()
    report(0.0, "loading")
    opened = open_source(inputs.model, inputs.signature)
    bound = data.bind(inputs, opened.contract)
    source = bridge.trainable(opened, "train_quantized", bound)
    flat = flatten(source.keras)
    plans = plan_layers(flat.model, flat.paths, params)
    training = finetune.resolve(params.fine_tune, source, bound)
    assert bound is not None  # `resolve` refuses to go on without train samples
    loaded = time.perf_counter()

    report(0.05, "wrapping")
    finetune.seed_everything(training)
    wrapped = wrap(flat.model, plans, params)
    ranges = start_ranges(wrapped, bound, source.contract, training)
    fitted = finetune.fit(wrapped, training, source, bound, report, span=(0.1, 0.85), checkpoint=inputs.checkpoint)
    trained = keras_source.of_model(finish(wrapped), source.contract)
    fit_done = time.perf_counter()

    report(0.85, "converting")
    target = inputs.workdir / "model.tflite"
    _convert(trained, params, target)
    report(0.9, "proving")
    proved = proof.prove(
        trained,
        target,
        bound=bound,
        mode="int8",
        min_sqnr_db=params.min_sqnr_db,
        seed=training.seed,
        threads=inputs.threads,
    )
    kept, notes = prove_kept(keras_source.of_model(flat.model), plans, TfliteFile.read(target), params)
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, target),
        contract=proved.contract,
        metrics=proved.metrics,
        invariants=(*proved.invariants, *kept),
        layers=tuple(plan.outcome() for plan in plans),
        notes=(*source.notes, *bound.notes, *training.notes, ranges, *fitted, *notes, *proved.notes),
        seconds={"load": loaded - began, "train": fit_done - loaded, "prove": time.perf_counter() - fit_done},
    )


def _convert(trained: Source, params: technique_pb2.TrainQuantized, target: Path) -> None:
    converter = trained.converter()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    _, kind = MODES[params.input_output]
    converter.inference_input_type = converter.inference_output_type = kind
    conversion.convert(converter, target)


def prove_kept(
    source: Source, plans: Sequence[LayerPlan], file: TfliteFile, params: technique_pb2.TrainQuantized
) -> tuple[tuple[step_pb2.Invariant, ...], tuple[str, ...]]:
    """Proves what training promises, in the file: integers, and the zeros and clusters that were to be preserved.

    Args:
        source: the flat model, before training.

    Errors: INVARIANT_BROKEN naming the layer.
    """
    left = [plan for plan in plans if plan.left_float]
    mode, _ = MODES[params.input_output]
    allowed = [name.split(" ×")[0] for name in invariants.float_operators(file)] if left else []
    checks = [stored_as_int8(invariants.integer(file, mode, allowed=allowed), plans, file)]
    notes = [f"left float: {', '.join(plan.path for plan in left)}"] if left else []
    for field, found in (
        ("preserve_sparsity", pruned.sparsity_kept(source, file)),
        ("preserve_clusters", clustered.clusters_kept(source, file)),
    ):
        if getattr(params, field):
            checks += found
        elif found:
            notes.append(f"the model was pruned or clustered, and training does not keep that: set {field} to keep it")
    return invariants.require(checks), tuple(notes)


def stored_as_int8(integer: step_pb2.Invariant, plans: Sequence[LayerPlan], file: TfliteFile) -> step_pb2.Invariant:
    """Adds to the `integer` invariant that every kernel that was quantized is int8 in the file, by its size."""
    sizes = Counter(weight.tensor.size for weight in file.weights if weight.tensor.dtype == "int8")
    missing = []
    for plan in plans:
        for name in KERNELS.get(plan.class_name, ()) if plan.quantized else ():
            size = int(getattr(plan.layer, name).shape.num_elements())
            if not sizes[size]:
                missing.append(f"the kernel of {plan.path} is not int8")
            sizes[size] -= 1
    if not missing:
        return integer
    return step_pb2.Invariant(name="integer", passed=False, detail="; ".join([*missing, integer.detail]))
