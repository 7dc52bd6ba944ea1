"""One LiteRT interpreter: the shapes it is allocated for, its delegate, and what its errors mean.

Not thread-safe, as LiteRT is not. Some valid files kill the process in here and a bad one may hang: files are run in a
child process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from squeezeflow.core.errors import SqueezeflowError

Array = npt.NDArray[Any]
Shapes = dict[int, tuple[int, ...]]

XNNPACK, NO_DELEGATE = "xnnpack", "none"

UNRESOLVED = re.compile(r"unresolved custom op: (?P<op>[^\s.]+)|Didn't find op for builtin opcode '(?P<builtin>\w+)'")
TOO_NEW = re.compile(r"[Oo]p builtin_code out of range: (?P<op>\d+)")
FAILED_NODE = re.compile(r"Node number \d+ \((?P<op>[^)]+)\) failed to (?P<when>prepare|invoke)")


class AllocationError(Exception):
    """LiteRT cannot prepare the graph for the shapes it was given."""


class Interpreter:
    """A file, ready for the shapes that were last run.

    Attributes:
        delegate: `xnnpack`; `none` where XNNPACK refuses what LiteRT's own kernels run.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        self._path = path
        self._threads = threads
        self._xnnpack_ran = False
        self._open(XNNPACK)

    def allocate(self, shapes: Shapes) -> None:
        """Prepares for input shapes by tensor index; nothing is done where they are as they were.

        Errors: AllocationError; the interpreter is then as new.
        """
        if shapes == self._shapes:
            return
        if self.delegate == NO_DELEGATE:
            self._open(XNNPACK)
        try:
            self._allocate(shapes)
            self._xnnpack_ran = True
        except AllocationError:
            # XNNPACK refuses graphs that LiteRT's own kernels run (sparse weights with integers, for one). Where it has
            # run other shapes, these shapes are at fault.
            if self._xnnpack_ran:
                self._open(XNNPACK)
                raise
            self._allocate_without_delegate(shapes)

    def run(self, inputs: Mapping[int, Array], outputs: Sequence[int], *, reset: bool = False) -> list[Array]:
        """Gives the outputs by tensor index, copied; `reset` clears what the graph keeps from the run before.

        Errors: AllocationError, UNSUPPORTED_OP, DATA_MISMATCH.
        """
        self.allocate({index: tuple(value.shape) for index, value in inputs.items()})
        if reset:
            self._interpreter.reset_all_variables()
        for index, value in inputs.items():
            self._interpreter.set_tensor(index, value)
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise invoke_error(self._path, self._news(error)) from error
        return [np.asarray(self._interpreter.get_tensor(index)) for index in outputs]

    def _open(self, delegate: str) -> None:
        from ai_edge_litert import interpreter as litert

        types = litert.OpResolverType
        resolver = types.BUILTIN if delegate == XNNPACK else types.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self.delegate = delegate
        self._shapes: Shapes | None = None
        self._heard = ""
        try:
            self._interpreter: Any = litert.Interpreter(
                model_path=str(self._path), num_threads=self._threads, experimental_op_resolver_type=resolver
            )
        except (RuntimeError, ValueError) as error:
            raise prepare_error(self._path, str(error)) from error

    def _allocate(self, shapes: Shapes) -> None:
        self._shapes = None
        try:
            for index, shape in shapes.items():
                self._interpreter.resize_tensor_input(index, shape)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise AllocationError(self._news(error)) from error
        self._shapes = shapes

    def _allocate_without_delegate(self, shapes: Shapes) -> None:
        self._open(NO_DELEGATE)
        try:
            self._allocate(shapes)
        except AllocationError:
            # LiteRT's own words name the operator; XNNPACK's name XNNPACK.
            self._open(XNNPACK)
            raise

    def _news(self, error: Exception) -> str:
        """Gives what an error says that the ones before did not: LiteRT repeats all of them."""
        text = str(error)
        news = text.removeprefix(self._heard) or text
        self._heard = text
        return news


def prepare_error(path: Path, text: str) -> SqueezeflowError:
    """Gives what LiteRT's words on opening or preparing a file mean: UNSUPPORTED_OP, or MALFORMED_MODEL."""
    why = _one_line(text)
    for pattern in (UNRESOLVED, TOO_NEW, FAILED_NODE):
        if found := pattern.search(text):
            op = next(name for name in (found.groupdict().get("op"), found.groupdict().get("builtin")) if name)
            return SqueezeflowError(
                "UNSUPPORTED_OP",
                f"LiteRT has no kernel that runs {op} as {path.name} uses it ({why}): change the layer that makes it",
                metadata={"op": op, "litert": why},
            )
    return SqueezeflowError(
        "MALFORMED_MODEL",
        f"LiteRT cannot load {path.name} ({why}): convert the model again",
        metadata={"litert": why},
    )


def invoke_error(path: Path, text: str) -> SqueezeflowError:
    """Gives what LiteRT's words on a failed invocation mean: DATA_MISMATCH for indices, else UNSUPPORTED_OP."""
    why = _one_line(text)
    found = FAILED_NODE.search(text)
    op = found["op"] if found else "an operator"
    if any(words in why for words in ("out of bounds", "out of range", "only_positive")):
        return SqueezeflowError(
            "DATA_MISMATCH",
            f"{op} in {path.name} was given an index that its table does not have ({why}): correct the ids in the data",
            metadata={"op": op, "litert": why},
        )
    return SqueezeflowError(
        "UNSUPPORTED_OP",
        f"LiteRT cannot run {op} in {path.name} ({why}): change the layer that makes it",
        metadata={"op": op, "litert": why},
    )


def _one_line(text: str) -> str:
    # Two messages are often joined without a space.
    return " ".join(re.sub(r"(?=Node number \d)", " ", text).split())[:400]
