"""Quantize after training with ai-edge-quantizer: int4, blocks, weights alone, and precisions by layer.

It works on the float TFLite file, which is the model itself or is converted here first. What every weight becomes is
planned before (`ai_edge_plan`) and read again from the final bytes after.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from squeezeflow.core import invariants
from squeezeflow.core.datasets import BoundData, Dataset
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.invariants.weights import WeightTarget, weights
from squeezeflow.core.sizes import sizes_of
from squeezeflow.core.step import ArtifactPath, Report, StepInputs, StepOutputs
from squeezeflow.core.tflite import TfliteFile
from squeezeflow.core.tflite.compaction import compact
from squeezeflow.modelkit import proof
from squeezeflow.modelkit.source import Source
from squeezeflow.quantizer import ai_edge_library
from squeezeflow.quantizer.ai_edge_layers import Key, Layer, key, layers_of
from squeezeflow.quantizer.ai_edge_plan import Plan, check, plan
from squeezeflow.quantizer.ai_edge_source import open_tflite
from squeezeflow.v1 import artifact_pb2, step_pb2, technique_pb2


def run(params: technique_pb2.Quantize, inputs: StepInputs, report: Report) -> StepOutputs:
    """Quantizes a Keras model, a SavedModel or a float TFLite file to `model.tflite` in the step's folder.

    Errors: INVALID_PARAMETER (parameters that do not go together, a pattern without a layer), UNSUPPORTED_INPUT (a
    TFLite file that is not float), UNSUPPORTED_OP, UNSUPPORTED_LAYER (no weight to quantize), DATA_MISSING (INT8
    without samples), OUTPUT_MISMATCH (below `min_sqnr_db`), NON_FINITE_OUTPUT, INVARIANT_BROKEN, and those of opening
    and converting a model.
    """
    check(params)
    began = time.perf_counter()
    report(0.0, "loading")
    source, path = _open(inputs, report)
    bound = _bind(inputs, source)
    file = TfliteFile.read(path)
    layers, owners = layers_of(file, source.model)
    planned = plan(params, file, layers, owners)
    _require_work(planned)
    loaded = time.perf_counter()

    samples, calibrated = _samples(params, planned, source, bound)
    report(0.5, "calibrating" if samples else "quantizing")
    target = inputs.workdir / "model.tflite"
    ai_edge_library.quantize(path, file, planned, samples, target, threads=max(1, inputs.threads))
    # The plan knows its weights by name.
    target.write_bytes(compact(target.read_bytes(), rename=False))
    quantized = time.perf_counter()

    report(0.8, "proving")
    proved = proof.prove(
        source,
        target,
        bound=bound,
        mode=_closeness(planned),
        min_sqnr_db=params.min_sqnr_db,
        seed=params.seed,
        threads=max(1, inputs.threads),
    )
    final = TfliteFile.read(target)
    checked, notes = check_weights(final, planned)
    invariants.require([checked])
    integers = (checked,) if _integer(planned) else ()
    kept = (*integers, *invariants.require(_kept(source, final)))
    return StepOutputs(
        artifact=ArtifactPath(artifact_pb2.ARTIFACT_KIND_TFLITE, target),
        contract=proved.contract,
        metrics=proved.metrics,
        invariants=(*proved.invariants, *kept),
        layers=outcomes(layers, owners, planned),
        notes=(
            *source.notes,
            *(bound.notes if bound else ()),
            *calibrated,
            *notes,
            # float16 weights are no integers: then it is told.
            *(() if integers else (checked.detail,)),
            *proved.notes,
            _sizes(path, target),
        ),
        seconds={"load": loaded - began, "quantize": quantized - loaded, "prove": time.perf_counter() - quantized},
    )


def _open(inputs: StepInputs, report: Report) -> tuple[Source, Path]:
    """Gives the source of the proof and the float file: the model itself, or what it is converted to."""
    if inputs.model.kind == artifact_pb2.ARTIFACT_KIND_TFLITE:
        return cast(Source, open_tflite(inputs)), inputs.model.path
    # TensorFlow is needed for these only.
    from squeezeflow.modelkit import conversion, threads
    from squeezeflow.modelkit.source import open_source

    threads.limit(inputs.threads)
    source = open_source(inputs.model, inputs.signature)
    report(0.2, "converting")
    path = inputs.workdir / "float.tflite"
    conversion.convert(source.converter(), path)
    return source, path


def _bind(inputs: StepInputs, source: Source) -> BoundData | None:
    if inputs.data is None:
        return None
    return Dataset.open(inputs.data.path).bind(source.contract, scale=inputs.scale, offset=inputs.offset)


def _require_work(planned: Plan) -> None:
    """Refuses a plan that leaves every weight as it is: the result would be the float file under another name."""
    if planned.mode == "int8" or planned.dtypes - {"float32"}:
        return
    reasons = sorted({target.reason for target in planned.targets}) or ["it has no weights"]
    raise SqueezeflowError(
        "UNSUPPORTED_LAYER",
        f"no weight of the model can be quantized ({'; '.join(reasons)[:300]}): use mode FLOAT16 or INT8, or name "
        "layers in layer_precisions",
    )


def _samples(
    params: technique_pb2.Quantize, planned: Plan, source: Source, bound: BoundData | None
) -> tuple[list[dict[str, np.ndarray]], tuple[str, ...]]:
    """Gives the calibration samples by signature name, and a note that says which ones; none but for INT8.

    Errors: DATA_MISSING.
    """
    if planned.mode != "int8":
        return [], ()
    if bound is None:
        raise SqueezeflowError(
            "DATA_MISSING",
            "int8 needs calibration samples: give data with x_calibration or x_train, or use mode MODE_DYNAMIC",
            metadata={"split": "calibration"},
        )
    batch = {tensor.name: tensor.shape[0] if tensor.shape else 1 for tensor in source.contract.inputs}
    samples = [
        {
            source.signature_inputs[name]: np.repeat(rows, batch[name], axis=0) if batch[name] > 1 else rows
            for name, rows in sample.items()
        }
        for sample in bound.calibration(params.calibration_samples, params.seed)
    ]
    split = "calibration" if bound.count("calibration") else "train"
    sizes = f" in {bound.sizes(split)} sizes" if bound.sizes(split) > 1 else ""
    if split == "calibration":
        return samples, (f"calibrated on all {len(samples)} samples of calibration{sizes}",)
    return samples, (f"calibrated on {len(samples)} samples of train{sizes}, drawn by seed {params.seed}",)


def _closeness(planned: Plan) -> str:
    """Gives the mode by which the proof judges: as tight as float16 where nothing became an integer."""
    return "int8" if _integer(planned) else "float16"


def _integer(planned: Plan) -> bool:
    return planned.mode == "int8" or bool(planned.dtypes & {"int8", "int4"})


def check_weights(final: TfliteFile, planned: Plan) -> tuple[step_pb2.Invariant, tuple[str, ...]]:
    """Gives the `integer` invariant, and notes that name the operators that stayed float in mode INT8."""
    invariant = weights(final, planned.targets)
    if planned.mode != "int8":
        return invariant, ()
    left = invariants.float_operators(final)
    quantized = not final.weights or any(weight.tensor.dtype in ("int8", "int4") for weight in final.weights)
    operators = invariants.integer(final, "int8", allowed=[name.split(" ×")[0] for name in left] if quantized else [])
    both = step_pb2.Invariant(
        name="integer",
        passed=invariant.passed and operators.passed,
        detail="; ".join(part.detail for part in sorted((operators, invariant), key=lambda part: part.passed)),
    )
    return both, (f"left float: {', '.join(left)}",) if left else ()


def _kept(source: Source, final: TfliteFile) -> tuple[step_pb2.Invariant, ...]:
    """Gives the invariants of what the source brings along: zeros of pruned kernels, clusters of clustered ones."""
    if source.model is not None:
        from squeezeflow.modelkit import clustered, pruned

        return (*pruned.sparsity_kept(source, final), *clustered.clusters_kept(source, final))
    if source.format != "tflite":
        return ()
    targets = invariants.sparsity_targets(source.kernels())
    return (invariants.sparsity(final, targets),) if targets else ()


def outcomes(layers: tuple[Layer, ...], owners: Mapping[Key, str], planned: Plan) -> tuple[step_pb2.LayerOutcome, ...]:
    """Lists every layer with what its weights became."""
    by_layer: dict[str, list[WeightTarget]] = {}
    for target in planned.targets:
        by_layer.setdefault(owners[key(target.weight)], []).append(target)
    return tuple(
        step_pb2.LayerOutcome(
            layer=layer.path,
            class_name=layer.class_name,
            applied=any(target.dtype != "float32" for target in by_layer.get(layer.path, [])),
            detail=_detail(by_layer.get(layer.path, [])),
        )
        for layer in layers
    )


def _detail(targets: list[WeightTarget]) -> str:
    several = len({(target.weight.operator, target.dtype) for target in targets}) > 1
    parts = []
    for target in targets:
        text = ", ".join(filter(None, (target.dtype, target.granularity)))
        text += f": {target.reason}" if target.reason else ""
        parts.append(f"{target.weight.operator} {text}" if several else text)
    return "; ".join(dict.fromkeys(parts)) or "has no weights of its own in the file"


def _sizes(before: Path, after: Path) -> str:
    dense, small = sizes_of(before), sizes_of(after)
    return (
        f"the float TFLite file has {dense.raw_bytes} bytes, the quantized one {small.raw_bytes} "
        f"({dense.raw_bytes / small.raw_bytes:.2f}x smaller)"
    )
