"""The recipes that ship with the product, recipe files, and `--set`: pure values over the protos of the techniques.

The command line names recipes and the orchestrator fills in the ones a request leaves out, so both read them here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import jobs_pb2, technique_pb2

BASELINE = "float32"

_CONVERT = technique_pb2.Technique(convert=technique_pb2.Convert())
_PRUNE = technique_pb2.Technique(prune=technique_pb2.Prune())
# It keeps the zeros of what was pruned before it: `preserve_sparsity` is true by default.
_CLUSTER = technique_pb2.Technique(cluster=technique_pb2.Cluster())


def _quantize(mode: technique_pb2.Quantize.Mode) -> technique_pb2.Technique:
    return technique_pb2.Technique(quantize=technique_pb2.Quantize(mode=mode))


def _train_quantized(*, sparsity: bool = False, clusters: bool = False) -> technique_pb2.Technique:
    params = technique_pb2.TrainQuantized(preserve_sparsity=sparsity, preserve_clusters=clusters)
    return technique_pb2.Technique(train_quantized=params if sparsity or clusters else technique_pb2.TrainQuantized())


_INT8 = _quantize(technique_pb2.Quantize.MODE_INT8)

# Read them; take a copy with `named` to change one.
RECIPES: Mapping[str, jobs_pb2.Recipe] = MappingProxyType(
    {
        name: jobs_pb2.Recipe(name=name, techniques=techniques)
        for name, techniques in {
            BASELINE: [_CONVERT],
            "dynamic": [_quantize(technique_pb2.Quantize.MODE_DYNAMIC)],
            "int8": [_INT8],
            "float16": [_quantize(technique_pb2.Quantize.MODE_FLOAT16)],
            "int8-io": [_quantize(technique_pb2.Quantize.MODE_INT8_IO)],
            "uint8-io": [_quantize(technique_pb2.Quantize.MODE_UINT8_IO)],
            "int16x8": [_quantize(technique_pb2.Quantize.MODE_INT16X8)],
            "int4": [_quantize(technique_pb2.Quantize.MODE_INT4)],
            "qat": [_train_quantized()],
            "prune": [_PRUNE, _CONVERT],
            "prune-int8": [_PRUNE, _INT8],
            "cluster": [_CLUSTER, _CONVERT],
            "cluster-int8": [_CLUSTER, _INT8],
            "prune-cluster": [_PRUNE, _CLUSTER, _CONVERT],
            "prune-cluster-int8": [_PRUNE, _CLUSTER, _INT8],
            "pqat": [_PRUNE, _train_quantized(sparsity=True)],
            "cqat": [_CLUSTER, _train_quantized(clusters=True)],
            "pcqat": [_PRUNE, _CLUSTER, _train_quantized(sparsity=True, clusters=True)],
        }.items()
    }
)

_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_INTEGERS = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)
_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32: 1 << 32, FieldDescriptor.CPPTYPE_UINT64: 1 << 64}
_SIGNED = {FieldDescriptor.CPPTYPE_INT32: 1 << 31, FieldDescriptor.CPPTYPE_INT64: 1 << 63}


def named(name: str) -> jobs_pb2.Recipe:
    """Gives a copy of a shipped recipe; INVALID_PARAMETER where there is none of that name."""
    if name not in RECIPES:
        raise SqueezeflowError(
            "INVALID_PARAMETER", f"there is no recipe {name!r}: choose {_choices(name, RECIPES)}, or give a FILE.json"
        )
    return _copy(RECIPES[name])


def default_recipes(*, with_data: bool) -> list[jobs_pb2.Recipe]:
    """Gives what a job without recipes runs: `dynamic`, and `int8` where there is data."""
    return [named(name) for name in (("dynamic", "int8") if with_data else ("dynamic",))]


def load_file(path: Path) -> jobs_pb2.Recipe:
    """Reads a recipe file, the proto JSON of `Recipe`; INVALID_PARAMETER says where it is wrong."""
    recipe = jobs_pb2.Recipe()
    try:
        json_format.Parse(path.read_text(encoding="utf-8"), recipe)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise SqueezeflowError("INVALID_PARAMETER", f"{path} is not the JSON of a Recipe: {reason}") from error
    return recipe


def techniques_of(recipes: Iterable[jobs_pb2.Recipe]) -> frozenset[str]:
    """Gives the names of the techniques that the recipes use: `quantize`, `prune`, …."""
    return frozenset(technique.WhichOneof("technique") or "" for recipe in recipes for technique in recipe.techniques)


def override(recipes: Sequence[jobs_pb2.Recipe], settings: Sequence[str]) -> list[jobs_pb2.Recipe]:
    """Gives copies of the recipes with `TECHNIQUE.FIELD=VALUE` settings applied wherever the technique occurs.

    Nested fields are reached by dots: `prune.fine_tune.epochs=5`; lists of words are given with commas:
    `prune.layers.exclude=conv_1,block_*`; lists of messages as `PATTERN:VALUE` pairs with commas:
    `cluster.layer_clusters=dense*:32,conv:16`. Bounds are checked by the proto's rules, not here.

    Raises:
        SqueezeflowError: INVALID_PARAMETER for an unknown technique or field, a value of another type, or a technique
            that no recipe has.
    """
    changed = [_copy(recipe) for recipe in recipes]
    for setting in settings:
        target, equals, value = setting.partition("=")
        technique, dot, path = target.strip().partition(".")
        if not (equals and dot and path):
            raise SqueezeflowError(
                "INVALID_PARAMETER", f"{setting!r} is not TECHNIQUE.FIELD=VALUE: write it like prune.sparsity=0.8"
            )
        known = technique_pb2.Technique.DESCRIPTOR.oneofs_by_name["technique"].fields
        if technique not in {field.name for field in known}:
            raise SqueezeflowError(
                "INVALID_PARAMETER",
                f"{setting!r}: there is no technique {technique!r}: choose "
                f"{_choices(technique, [field.name for field in known])}",
            )
        found = [t for recipe in changed for t in recipe.techniques if t.WhichOneof("technique") == technique]
        if not found:
            raise SqueezeflowError(
                "INVALID_PARAMETER",
                f"{setting!r}: no recipe of this job has {technique}: leave it out, or add a recipe that has it",
            )
        for occurrence in found:
            _assign(getattr(occurrence, technique), path, value.strip(), setting)
    return changed


def _assign(message: Message, path: str, value: str, setting: str) -> None:
    name, _, rest = path.partition(".")
    field = _field(message.DESCRIPTOR, name, setting)
    if rest:
        if field.message_type is None or field.is_repeated:
            raise SqueezeflowError("INVALID_PARAMETER", f"{setting!r}: {name} has no fields: leave out .{rest}")
        getattr(message, name).SetInParent()
        _assign(getattr(message, name), rest, value, setting)
        return
    if field.is_repeated:
        del getattr(message, name)[:]
        _fill(getattr(message, name), field, value, setting)
        return
    if field.message_type is not None:
        inner = ", ".join(f"{name}.{f.name}" for f in field.message_type.fields)
        raise SqueezeflowError("INVALID_PARAMETER", f"{setting!r}: {name} has fields of its own: set one of {inner}")
    setattr(message, name, _value(field, value, setting))


def _fill(items: Any, field: FieldDescriptor, text: str, setting: str) -> None:
    """Fills a list: of words, or of messages of two fields, a pattern and what holds for the layers it names."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if field.message_type is None:
        items.extend(_value(field, word, setting) for word in words)
        return
    pattern, other = field.message_type.fields
    for word in words:
        name, colon, value = word.rpartition(":")
        if not colon:
            raise SqueezeflowError(
                "INVALID_PARAMETER",
                f"{setting!r}: {word!r} is not PATTERN:VALUE: write it like {field.name}=dense*:VALUE",
            )
        items.add(**{pattern.name: name, other.name: _value(other, value, setting)})


def _field(descriptor: Any, name: str, setting: str) -> FieldDescriptor:
    field: FieldDescriptor | None = descriptor.fields_by_name.get(name)
    if field is None:
        names = [f.name for f in descriptor.fields]
        advice = f"choose {_choices(name, names)}" if names else "it has no fields"
        raise SqueezeflowError("INVALID_PARAMETER", f"{setting!r}: {descriptor.name} has no field {name!r}: {advice}")
    return field


def _value(field: FieldDescriptor, text: str, setting: str) -> Any:
    kind = field.cpp_type
    try:
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return _TRUTH[text.lower()]
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return _enum(field, text)
        if kind in _INTEGERS:
            return _integer(kind, text)
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            number = float(text)
            if not math.isfinite(number):
                raise ValueError(text)
            return number
    except (ValueError, KeyError) as error:
        raise SqueezeflowError(
            "INVALID_PARAMETER", f"{setting!r}: {text!r} is not a value of {field.name}: give {_wanted(field)}"
        ) from error
    return text


def _integer(kind: int, text: str) -> int:
    number = int(text)
    low, high = (0, _UNSIGNED[kind]) if kind in _UNSIGNED else (-_SIGNED[kind], _SIGNED[kind])
    if not low <= number < high:
        raise ValueError(text)
    return number


def _enum_values(field: FieldDescriptor) -> dict[str, int]:
    """Gives the numbers of an enum's values by bare name, `INT8` for `MODE_INT8`, without the unspecified one."""
    enum = field.enum_type
    if enum is None:
        raise TypeError(f"{field.full_name} is no enum")
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix): value.number for value in enum.values if value.number}


def _enum(field: FieldDescriptor, text: str) -> int:
    """Gives the number of an enum value by its bare name, or its full one."""
    word = text.upper().replace("-", "_")
    for bare, number in _enum_values(field).items():
        if word == bare or (field.enum_type is not None and word == field.enum_type.values_by_number[number].name):
            return number
    raise ValueError(text)


def _wanted(field: FieldDescriptor) -> str:
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true or false"
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return "one of " + ", ".join(_enum_values(field))
    if field.cpp_type in _UNSIGNED:
        return "a whole number of 0 or more"
    return "a whole number" if field.cpp_type in _INTEGERS else "a number"


def _choices(wrong: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(wrong, names, n=1)
    return f"{near[0]!r}? (known: {', '.join(names)})" if near else f"one of {', '.join(names)}"


def _copy(recipe: jobs_pb2.Recipe) -> jobs_pb2.Recipe:
    copy = jobs_pb2.Recipe()
    copy.CopyFrom(recipe)
    return copy
