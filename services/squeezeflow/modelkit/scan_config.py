"""Walks the configuration of a Keras model, without loading it, and names everything that is not plain Keras.

Both libraries import modules and call functions that a configuration names; Keras 2 runs the code in a Lambda layer of
an HDF5 file whatever its safe mode says. So nothing is handed to them unless every name in it is known here.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from squeezeflow.modelkit import keras_names as names

_OPERATION = re.compile(r"[A-Z][A-Za-z0-9]*")
_OPERATION_MODULES = frozenset(["core", "image", "linalg", "math", "nn", "numpy"])
# Layers that read a file when their vocabulary is a path.
_LOOKUPS = frozenset(["StringLookup", "IntegerLookup", "TextVectorization"])
# A real configuration nests by models in models; deeper ones are made to exhaust a parser.
MAX_DEPTH = 200


Check = Callable[[dict[str, Any], str], Iterator[str]]


def scan_config(config: Any) -> list[str]:
    """Gives what is found, each as one line; empty means that loading runs nothing of the model's own.

    Models are loaded without their compile configuration: at the top it may name a loss of the author's own, which is
    a name and no more, but neither code nor what gadgets call.
    """
    if isinstance(config, dict):
        compiled = scan_names(config.get("compile_config"), "compile_config")
        config = {key: value for key, value in config.items() if key != "compile_config"}
    else:
        compiled = []
    return list(dict.fromkeys([*_walk(config, "the model", 0, _check), *compiled]))


def scan_names(config: Any, place: str) -> list[str]:
    """Gives what is found in a configuration that is never loaded: code, and names that no honest model has there."""
    return list(dict.fromkeys(_walk(config, place, 0, _check_name)))


def _walk(value: Any, place: str, depth: int, check: Check) -> Iterator[str]:
    if depth > MAX_DEPTH:
        yield f"{place}: configuration nested deeper than {MAX_DEPTH}"
        return
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, place, depth + 1, check)
    elif isinstance(value, dict):
        if "class_name" in value:
            place = _place(value, place)
            yield from check(value, place)
        for item in value.values():
            yield from _walk(item, place, depth + 1, check)


def _check_name(node: dict[str, Any], place: str) -> Iterator[str]:
    name, module, inner = node["class_name"], node.get("module"), node.get("config")
    if not isinstance(name, str):
        yield f"{place}: a class that is not named by text"
    elif name in names.CODE_LAYERS:
        yield f"{place}: {name} carries or loads code"
    elif name == "__lambda__":
        yield f"{place}: a Python lambda"
    elif isinstance(module, str):
        function = inner if name == "function" else name
        root = module.split(".")[0]
        library = root in {known.split(".")[0] for known in names.ROOTS}
        python = root in sys.stdlib_module_names and root not in ("builtins", "__main__")
        if python or (library and not _is_keras(module)) or (root == "builtins" and hasattr(builtins, str(function))):
            yield f"{place}: the {'function' if name == 'function' else 'object'} {_qualified(module, function)}"


def _place(node: dict[str, Any], place: str) -> str:
    inner = node.get("config")
    # A layer that has no configuration is named beside it.
    name = (inner.get("name") if isinstance(inner, dict) else None) or node.get("name")
    known_part = str(node["class_name"]) in names.PARTS | names.VALUES
    return place if known_part or not isinstance(name, str) else f"layer {name[:100]}"


def _check(node: dict[str, Any], place: str) -> Iterator[str]:
    name, module, inner = node["class_name"], node.get("module"), node.get("config")
    if not isinstance(name, str) or not isinstance(module, (str, type(None))):
        yield f"{place}: a class or module that is not named by text"
    elif name in names.CODE_LAYERS:
        yield f"{place}: {name} carries or loads code"
    elif name == "__lambda__":
        yield f"{place}: a Python lambda"
    elif name == "function":
        if str(inner) not in names.FUNCTIONS or not (module in (None, "builtins") or _is_keras(module)):
            yield f"{place}: the function {_qualified(module, inner)} is not part of Keras"
    elif name in names.VALUES:
        return
    elif not _is_known(name, module):
        yield f"{place}: custom object {_qualified(module, name)}"
    elif not _registered_fits(node.get("registered_name"), name):
        yield f"{place}: custom object {str(node.get('registered_name'))[:100]}"
    elif name in ("TFOpLambda", "SlicingOpLambda"):
        yield from _check_function(inner, place)
    elif name in _LOOKUPS and isinstance(inner, dict) and isinstance(inner.get("vocabulary"), str):
        yield f"{place}: {name} reads its vocabulary from the file {inner['vocabulary'][:100]}"


def _is_known(name: str, module: str | None) -> bool:
    if module is None:
        return name in names.LAYERS or name in names.PARTS or name in names.MODELS
    if not _is_keras(module):
        return False
    parts = module.split(".")
    if "ops" in parts:
        below = parts[parts.index("ops") + 1 :]
        return _OPERATION.fullmatch(name) is not None and all(part in _OPERATION_MODULES for part in below)
    return name in names.LAYERS or name in names.PARTS or name in names.MODELS


def _is_keras(module: str) -> bool:
    """Tells whether a module is one of those in either library that hold layers and their parts."""
    for root in names.ROOTS:
        if module == root:
            return True
        if module.startswith(f"{root}."):
            rest = [
                part for part in module[len(root) + 1 :].split(".") if part not in ("src", "api", "_tf_keras", "keras")
            ]
            return not rest or rest[0] in names.PACKAGES
    return False


def _registered_fits(registered: Any, name: str) -> bool:
    """Tells whether a registered name says no more than the class name: `Dense`, `keras>Dense`, or nothing."""
    if registered is None:
        return True
    if not isinstance(registered, str):
        return False
    package, _, last = registered.rpartition(">")
    return last == name and (not package or package.split(".")[0] in ("keras", "tf_keras", "Keras", "TFKeras"))


def _check_function(inner: Any, place: str) -> Iterator[str]:
    function = inner.get("function", "__operators__.getitem") if isinstance(inner, dict) else None
    if not isinstance(function, str):
        yield f"{place}: an operation that is not named by text"
    elif function.split(".")[0] not in names.TF_FUNCTION_PACKAGES and function not in names.TF_FUNCTIONS:
        yield f"{place}: the operation tf.{function[:100]}"


def _qualified(module: Any, name: Any) -> str:
    return ".".join(str(part)[:100] for part in (module, name) if part)
