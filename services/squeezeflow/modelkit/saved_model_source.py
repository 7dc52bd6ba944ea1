"""SavedModels as a `Source`: one of their signatures, under its own names."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import fixed_batch, serving
from squeezeflow.modelkit.compile_config import CompileConfig
from squeezeflow.modelkit.inner_values import InnerValues
from squeezeflow.modelkit.source import Arrays
from squeezeflow.v1 import contract_pb2

_NUMBERS = frozenset(
    tf.dtypes.as_dtype(name).as_datatype_enum
    for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "bool")
)
# What a checkpoint holds besides variables of the model.
_BOOKKEEPING = frozenset({"_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"})
# A signature by this name initialises the model; it is not for callers.
_INIT = "__saved_model_init_op"
_BATCH_NOTE = "the batch is fixed to 1, one sample a call: the signature's loop does not convert with a free batch axis"


def read_proto(folder: Path) -> saved_model_pb2.SavedModel:
    """Reads saved_model.pb without loading anything.

    Errors: MALFORMED_MODEL.
    """
    message = saved_model_pb2.SavedModel()
    if others := [name for name in ("saved_model.pbtxt", "saved_model.cpb") if (folder / name).exists()]:
        # Which form a loader takes differs; only the one that is scanned may be there.
        raise _malformed(f"{others[0]} is not taken, saved_model.pb is")
    try:
        message.ParseFromString((folder / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise _malformed(str(error)) from error
    if not message.meta_graphs:
        raise _malformed("saved_model.pb holds no graph")
    return message


def meta_graph(message: saved_model_pb2.SavedModel) -> Any:
    """Gives the graph for serving, or the only one there is."""
    for graph in message.meta_graphs:
        if "serve" in graph.meta_info_def.tags:
            return graph
    return message.meta_graphs[0]


def signatures(graph: Any) -> list[str]:
    """Names the signatures that a caller can choose."""
    return sorted(name for name in graph.signature_def if name != _INIT and graph.signature_def[name].outputs)


def choose(names: list[str], wanted: str) -> str:
    """Gives the signature to use: the wanted one, the only one, or `serving_default`.

    Errors: INVALID_PARAMETER, listing them.
    """
    field = (("model.signature", f"one of: {', '.join(names)}"),)
    if wanted:
        if wanted not in names:
            message = f"the model has no signature {wanted}: choose one of {', '.join(names) or 'none'}"
            raise SqueezeflowError(
                "INVALID_PARAMETER", message, metadata={"signatures": ", ".join(names)}, fields=field
            )
        return wanted
    if len(names) == 1:
        return names[0]
    if serving.SIGNATURE in names:
        return serving.SIGNATURE
    if not names:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT", "the SavedModel has no signature: save it with signatures=, or with model.export"
        )
    raise SqueezeflowError(
        "INVALID_PARAMETER",
        f"the model has several signatures: set signature to one of {', '.join(names)}",
        metadata={"signatures": ", ".join(names)},
        fields=field,
    )


def contract_of(graph: Any, signature: str) -> contract_pb2.Contract:
    """Gives the contract of a signature, names in alphabetical order, with batch 1 where its loops force that."""
    definition = graph.signature_def[signature]
    contract = contract_pb2.Contract(
        signature=signature,
        inputs=[_tensor(name, definition.inputs[name]) for name in sorted(definition.inputs)],
        outputs=[_tensor(name, definition.outputs[name]) for name in sorted(definition.outputs)],
    )
    if fixed_batch.needs_batch(graph, signature):
        for tensor in (*contract.inputs, *contract.outputs):
            if tensor.shape and tensor.shape[0] == -1:
                tensor.shape[0] = 1
    return contract


def _tensor(name: str, info: Any) -> contract_pb2.TensorContract:
    shape = [] if info.tensor_shape.unknown_rank else [int(dim.size) for dim in info.tensor_shape.dim]
    return contract_pb2.TensorContract(name=name, shape=shape, dtype=tf.dtypes.as_dtype(info.dtype).name)


def count_parameters(folder: Path) -> int:
    """Counts the elements of all variables from the checkpoint's index.

    Errors: MALFORMED_MODEL.
    """
    if not (folder / "variables" / "variables.index").is_file():
        return 0
    try:
        shapes = tf.train.load_checkpoint(str(folder / "variables" / "variables")).get_variable_to_shape_map()
    except Exception as error:
        raise _malformed(str(error)) from error
    return sum(math.prod(shape) for name, shape in shapes.items() if name not in _BOOKKEEPING)


def require_numbers(graph: Any, signature: str) -> None:
    """Refuses a signature that takes or gives text, or tensors whose number of axes is not known: UNSUPPORTED_INPUT."""
    definition = graph.signature_def[signature]
    for name, info in [*sorted(definition.inputs.items()), *sorted(definition.outputs.items())]:
        cause = ""
        if info.dtype not in _NUMBERS:
            cause = f"is {'text' if info.dtype == types_pb2.DT_STRING else 'not a tensor of numbers'}"
        elif info.tensor_shape.unknown_rank and name in definition.inputs:
            cause = "has no fixed number of axes"
        if cause:
            raise SqueezeflowError(
                "UNSUPPORTED_INPUT",
                f"tensor {name} {cause}, which TFLite does not take: save a signature of plain tensors of numbers",
                metadata={"tensor": name},
            )


def open_saved_model(folder: Path, wanted: str = "") -> SavedModelSource:
    """Loads a scanned SavedModel.

    Errors: MALFORMED_MODEL, INVALID_PARAMETER, UNSUPPORTED_INPUT.
    """
    graph = meta_graph(read_proto(folder))
    signature = choose(signatures(graph), wanted)
    require_numbers(graph, signature)
    contract = contract_of(graph, signature)
    tags = list(graph.meta_info_def.tags)
    try:
        loaded = tf.saved_model.load(str(folder), tags=tags)
        function = loaded.signatures[signature]
    except Exception as error:
        raise _malformed(str(error)) from error
    version = graph.meta_info_def.tensorflow_version
    source = SavedModelSource(folder, loaded, function, contract, tags, f"tensorflow {version}".strip())
    if fixed_batch.needs_batch(graph, signature):
        source.notes += (_BATCH_NOTE,)
    return source


class SavedModelSource:
    """A loaded SavedModel; see `Source`."""

    format = "SavedModel"
    keras: Any = None
    model: Any = None
    why_graph = ""
    compile_config = CompileConfig()

    def __init__(
        self,
        folder: Path,
        loaded: Any,
        function: Any,
        contract: contract_pb2.Contract,
        tags: list[str],
        written_by: str,
    ) -> None:
        self.contract, self.written_by = contract, written_by
        self.notes: tuple[str, ...] = ()
        self._fixed_folder: Path | None = None
        self._folder, self._loaded, self._function, self._tags = folder, loaded, function, tags
        self.signature_inputs: Mapping[str, str] = {tensor.name: tensor.name for tensor in contract.inputs}
        self.signature_outputs: Mapping[str, str] = {tensor.name: tensor.name for tensor in contract.outputs}

    @property
    def folder(self) -> Path:
        """The folder that it was loaded from."""
        return self._folder

    @property
    def fixes_batch(self) -> bool:
        """Whether the batch is fixed to 1 so that it converts."""
        return _BATCH_NOTE in self.notes

    @property
    def variables(self) -> list[Any]:
        """The variables that the signature reads, as far as Python can reach them."""
        return list(self._function.variables)

    def predict(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Gives the outputs by contract name for a batch of samples by contract name."""
        tensors = self.contract.inputs
        arrays = [np.asarray(inputs[tensor.name], dtype=tensor.dtype) for tensor in tensors]
        batch = next((tensor.shape[0] for tensor in tensors if tensor.shape), -1)
        results = serving.in_batches(self._run, arrays, None if batch < 0 else batch)
        return dict(zip(self.signature_outputs, results, strict=True))

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        given = {t.name: tf.constant(a) for t, a in zip(self.contract.inputs, arrays, strict=True)}
        results = self._function(**given)
        return [results[name].numpy() for name in self.signature_outputs]

    def inside(self, sample: Arrays) -> InnerValues:
        """Looks into the signature while it computes one sample, given by contract name."""
        return InnerValues(self._function, [sample[tensor.name] for tensor in self.contract.inputs])

    def converter(self) -> Any:
        """Gives a fresh TFLiteConverter of the chosen signature; of a copy with batch 1 where its loops need that."""
        return serving.converter_of(self._converted_folder(), self.contract.signature, self._tags)

    def _converted_folder(self) -> Path:
        if not self.fixes_batch:
            return self._folder
        if self._fixed_folder is None:
            message = read_proto(self._folder)
            fixed_batch.fix(meta_graph(message), self.contract.signature)
            self._fixed_folder = fixed_batch.write(self._folder, message)
            weakref.finalize(self, rmtree, self._fixed_folder, ignore_errors=True)
        return self._fixed_folder

    def graph(self) -> Any:
        """Gives the chosen signature as a GraphDef."""
        return self._function.graph.as_graph_def()

    def kernels(self) -> dict[str, np.ndarray]:
        """Gives the variables by name, and the constants of the graph and its functions."""
        found = {variable.name: variable.numpy() for variable in self._function.variables}
        graph = self.graph()
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            for node in nodes:
                if node.op == "Const" and len(node.attr["value"].tensor.tensor_shape.dim) > 1:
                    found[f"constant {len(found)}"] = tf.make_ndarray(node.attr["value"].tensor)
        return found

    def export(self, folder: Path) -> None:
        """Writes the chosen signature as a SavedModel with the signature `serving_default`."""
        tf.saved_model.save(self._loaded, str(folder), signatures={serving.SIGNATURE: self._function})


def _malformed(cause: str) -> SqueezeflowError:
    first = next((line.strip() for line in cause.splitlines() if line.strip()), "no reason given")
    return SqueezeflowError(
        "MALFORMED_MODEL",
        f"the SavedModel does not load ({first[:300]}): save it again and check that all its files were uploaded",
    )
