"""What the recipes of one job are: those of the request, or the default ones, checked and with everything filled in.

Recipes as such (the shipped ones, files, `--set`) are in `core.recipes`; here stands what a job adds to them.
"""

from __future__ import annotations

from google.protobuf.message import Message

from squeezeflow.core import recipes as shipped
from squeezeflow.core.canonical import fill_defaults
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import jobs_pb2, technique_pb2

KERAS, SAVED_MODEL, TFLITE = "Keras", "SavedModel", "TFLite"
# Techniques that train layers, unless they are asked to do their work at once.
TRAINED = frozenset({"prune", "cluster", "train_quantized"})
GIVES_TFLITE = frozenset({"convert", "quantize", "train_quantized"})


def resolve(spec: jobs_pb2.JobSpec) -> list[jobs_pb2.Recipe]:
    """Gives the requested recipes of a job with defaults and the job's `fine_tune` filled in.

    Raises:
        SqueezeflowError: INVALID_PARAMETER for two recipes of one name, a chain that does not fit together, or another
            recipe under the name of the baseline; recipe and technique are named.
    """
    recipes = list(spec.recipes) or shipped.default_recipes(with_data=bool(spec.data.artifact))
    seen: set[str] = set()
    for index, recipe in enumerate(recipes):
        if recipe.name in seen:
            raise _refused(index, f"two recipes are named {recipe.name}: give each its own name")
        seen.add(recipe.name)
        check_chain(recipe, index)
    return [_filled(recipe, spec.fine_tune) for recipe in recipes]


def check_chain(recipe: jobs_pb2.Recipe, index: int = 0) -> None:
    """Raises INVALID_PARAMETER when a technique cannot take what comes before it, or the last one gives no TFLite."""
    names = technique_names(recipe)
    if recipe.name == shipped.BASELINE and names != ["convert"]:
        raise _refused(index, f"the name {shipped.BASELINE} is kept for the baseline, a single convert: choose another")
    form = ""
    for place, (technique, name) in enumerate(zip(recipe.techniques, names, strict=True)):
        if form == TFLITE and not takes_tflite(technique):
            raise _refused(
                index,
                f"recipe {recipe.name}: {name} cannot follow {names[place - 1]}, which gives TFLite: put {name} before "
                f"it, or leave one of them out",
            )
        if form == SAVED_MODEL and _needs_keras(technique):
            message = f"{name} takes a Keras model, not the SavedModel that export gives: swap them"
            raise _refused(index, f"recipe {recipe.name}: {message}")
        form = _gives(technique, form)
    if form != TFLITE:
        message = f"ends with {names[-1]}, which gives no TFLite file: end it with convert, quantize or train_quantized"
        raise _refused(index, f"recipe {recipe.name} {message}")


def one_shot(params: Message) -> bool:
    """Whether a technique works at once: without data, without layers, on SavedModels too."""
    return "one_shot" in params.DESCRIPTOR.fields_by_name and bool(getattr(params, "one_shot", False))


def takes_tflite(technique: technique_pb2.Technique) -> bool:
    """Whether a technique works on a float TFLite file: quantization by ai-edge-quantizer."""
    quantize = technique.quantize
    return technique.WhichOneof("technique") == "quantize" and (
        quantize.backend == technique_pb2.Quantize.BACKEND_AI_EDGE
        or quantize.mode == technique_pb2.Quantize.MODE_INT4
        or bool(quantize.block_size or quantize.weight_only or quantize.layer_precisions)
    )


def technique_names(recipe: jobs_pb2.Recipe) -> list[str]:
    """Gives the recipe's techniques by name, in order."""
    return [technique.WhichOneof("technique") or "" for technique in recipe.techniques]


def export_formats(spec: jobs_pb2.JobSpec) -> dict[str, technique_pb2.Export]:
    """Gives the exports that a job asks for, each format once, by the names that `Candidate.exports` uses."""
    filled = [fill_defaults(export) for export in spec.exports]
    return {export_name(export): export for export in filled}


def export_name(export: technique_pb2.Export) -> str:
    """Gives `savedmodel` or `keras`."""
    return "keras" if export.format == technique_pb2.Export.FORMAT_KERAS else "savedmodel"


def _needs_keras(technique: technique_pb2.Technique) -> bool:
    name = technique.WhichOneof("technique")
    if name in TRAINED:
        return not one_shot(getattr(technique, name))
    return name == "export" and export_name(technique.export) == "keras"


def _gives(technique: technique_pb2.Technique, form: str) -> str:
    name = technique.WhichOneof("technique")
    if name in GIVES_TFLITE:
        return TFLITE
    if name == "export":
        return KERAS if export_name(technique.export) == "keras" else SAVED_MODEL
    return form if one_shot(getattr(technique, name)) else KERAS


def _filled(recipe: jobs_pb2.Recipe, fine_tune: technique_pb2.FineTune) -> jobs_pb2.Recipe:
    filled = fill_defaults(recipe)
    for technique in filled.techniques:
        params = getattr(technique, technique.WhichOneof("technique") or "")
        if "fine_tune" in params.DESCRIPTOR.fields_by_name:
            merged = merge_fine_tune(fine_tune, params.fine_tune)
            params.ClearField("fine_tune")
            if merged.ListFields():
                params.fine_tune.CopyFrom(merged)
    return filled


def merge_fine_tune(job: technique_pb2.FineTune, own: technique_pb2.FineTune) -> technique_pb2.FineTune:
    """Gives a technique's own fields, and the job's where it has none; an empty word counts as unset."""
    merged = technique_pb2.FineTune()
    for source in (job, own):
        for field, value in source.ListFields():
            if value != "":
                setattr(merged, field.name, value)
    return merged


def _refused(index: int, message: str) -> SqueezeflowError:
    return SqueezeflowError("INVALID_PARAMETER", message, fields=[(f"spec.recipes[{index}]", message)])
