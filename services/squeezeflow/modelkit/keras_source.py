"""Keras models of both libraries as a `Source`.

A file says which library wrote it: Keras 2 (tf_keras reads it) or Keras 3. Where that one cannot read it, the other is
tried. The model is traced once, through a function whose arguments and results carry the contract names; that trace
predicts, is saved as the SavedModel that the converter reads, and is what Export writes. Saving the trace instead of
the Keras object is three times as quick and keeps the names; variables are tracked one by one, without which a Keras 3
model converts to NaN.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.modelkit import compile_config, layers, naming, serving
from squeezeflow.modelkit.inner_values import InnerValues
from squeezeflow.modelkit.source import Arrays
from squeezeflow.v1 import contract_pb2


@dataclass(frozen=True)
class KerasFile:
    """What a Keras file says about itself, read without loading it."""

    format: str
    version: str
    compiled: compile_config.CompileConfig
    keras3: bool

    @property
    def written_by(self) -> str:
        """The library and its version, as far as the file tells."""
        # Keras 2 became tf_keras with 2.16; before, it was Keras itself.
        major, _, minor = self.version.partition(".")
        split_off = major == "2" and minor.split(".")[0].isdigit() and int(minor.split(".")[0]) >= 16
        return f"{'tf_keras' if split_off else 'keras'} {self.version}".strip()


def read_file(path: Path) -> KerasFile:
    """Reads who wrote a file, and how its model was compiled.

    Errors: MALFORMED_MODEL.
    """
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                version = str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
                training = json.loads(archive.read("config.json")).get("compile_config")
        else:
            with h5py.File(path) as file:
                version = _text(file.attrs.get("keras_version", ""))
                training = json.loads(_text(file.attrs.get("training_config", "null")))
    except Exception as error:
        raise _malformed(path, error) from error
    keras3 = version.split(".")[0].isdigit() and int(version.split(".")[0]) >= 3
    form = "Keras HDF5" if path.suffix != ".keras" else ("Keras 3 .keras" if keras3 else "tf_keras .keras")
    return KerasFile(form, version, compile_config.read(training), keras3)


def open_keras(path: Path) -> KerasSource:
    """Loads a scanned `.keras` or HDF5 file.

    Errors: MALFORMED_MODEL, UNSUPPORTED_INPUT.
    """
    facts = read_file(path)
    model, keras3, notes = load(path, facts)
    return KerasSource(
        model, keras3=keras3, format=facts.format, written_by=facts.written_by, compiled=facts.compiled, notes=notes
    )


def of_model(model: Any, contract: contract_pb2.Contract | None = None) -> KerasSource:
    """Gives a tf_keras model that is in memory as a source, to compare with what was made from it.

    Args:
        contract: of the model that it was made from, with the same inputs and outputs in the same order; None: its own.
    """
    import tf_keras

    written_by = f"tf_keras {tf_keras.__version__}"
    return KerasSource(model, keras3=False, format="tf_keras .keras", written_by=written_by, contract=contract)


class KerasSource:
    """A loaded Keras model; see `Source`.

    Recurrent layers and a few others convert with a fixed batch only: where the batch axis is free, such a model is
    traced with batch 1, and the contract says so.
    """

    why_graph = ""

    def __init__(
        self,
        model: Any,
        *,
        keras3: bool,
        format: str,
        written_by: str,
        compiled: compile_config.CompileConfig | None = None,
        notes: Sequence[str] = (),
        contract: contract_pb2.Contract | None = None,
    ) -> None:
        require_shape(model)
        self.format, self.written_by = format, written_by
        self.model, self.keras = model, None if keras3 else model
        self.keras3 = keras3
        self.compile_config = compiled or compile_config.CompileConfig()
        fixed = layers.fixed_batch_layers(model)
        self.notes = (*notes, *([_BATCH_NOTE.format(", ".join(fixed))] if fixed else []))
        self.contract = contract or contract_of(model, self.compile_config)
        require_numbers(model, self.contract)
        self.signature_inputs: Mapping[str, str] = naming.signature_inputs(
            [tensor.name for tensor in self.contract.inputs]
        )
        self.signature_outputs: Mapping[str, str] = naming.signature_outputs(
            [tensor.name for tensor in self.contract.outputs]
        )
        self._served = serving.Served(
            self._call,
            specs=[
                tf.TensorSpec(serving.shape_of(t), t.dtype, name=self.signature_inputs[t.name])
                for t in self.contract.inputs
            ],
            outputs=list(self.signature_outputs.values()),
            variables=[variable.value if keras3 else variable for variable in model.variables],
            owner=model,
        )

    def _call(self, *tensors: Any) -> list[Any]:
        given: Any = tensors[0] if len(tensors) == 1 else list(tensors)
        if self.keras3:
            # Keras 3 wants the structure that the model was built with; its leaves are in the order of `model.inputs`.
            structure = getattr(getattr(self.model, "_functional", self.model), "_inputs_struct", None)
            if structure is not None:
                given = tf.nest.pack_sequence_as(structure, list(tensors))
        results: list[Any] = tf.nest.flatten(self.model(given, training=False))
        return results

    def predict(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Gives the outputs by contract name for a batch of samples by contract name."""
        arrays = [np.asarray(inputs[tensor.name], dtype=tensor.dtype) for tensor in self.contract.inputs]
        return dict(zip(self.signature_outputs, self._served.predict(arrays), strict=True))

    def inside(self, sample: Arrays) -> InnerValues:
        """Looks into the trace while it computes one sample, given by contract name."""
        return InnerValues(self._served.function, [sample[tensor.name] for tensor in self.contract.inputs])

    def converter(self) -> Any:
        """Gives a fresh TFLiteConverter of the model's one signature."""
        return self._served.converter()

    def graph(self) -> Any:
        """Gives the trace as a GraphDef."""
        return self._served.function.graph.as_graph_def()

    def kernels(self) -> dict[str, np.ndarray]:
        """Gives the weights by name."""
        names = naming.unique([getattr(weight, "path", weight.name) for weight in self.model.weights])
        return {name: np.asarray(weight) for name, weight in zip(names, self.model.weights, strict=True)}

    def export(self, folder: Path) -> None:
        """Writes the model as a SavedModel with the signature `serving_default` under contract names."""
        self._served.save(folder)


_BATCH_NOTE = "the batch is fixed to 1, one sample a call: these layers do not convert with a free batch axis: {}"


def require_shape(model: Any) -> None:
    """Refuses a model whose shapes are not known: UNSUPPORTED_INPUT."""
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            "the model was saved before its input shape was known: call it once or start it with an Input layer",
        )


def require_numbers(model: Any, contract: contract_pb2.Contract) -> None:
    """Refuses a model that takes or gives text, sparse or ragged tensors: UNSUPPORTED_INPUT."""
    symbolic = [*model.inputs, *model.outputs]
    for named, tensor in zip([*contract.inputs, *contract.outputs], symbolic, strict=True):
        form = ""
        if named.dtype == "string":
            form = "text"
        elif _is_sparse_or_ragged(tensor):
            form = "a sparse or ragged tensor"
        if form:
            raise SqueezeflowError(
                "UNSUPPORTED_INPUT",
                f"tensor {named.name} is {form}, which TFLite does not take: cut the model behind the layer that makes "
                "numbers of it",
                metadata={"tensor": named.name},
            )


def _is_sparse_or_ragged(tensor: Any) -> bool:
    if type(tensor).__name__ in ("SparseKerasTensor", "RaggedKerasTensor"):
        return True
    if type(layers.origin(tensor)[0]).__module__.startswith("keras.src.ops."):
        # Keras 3 calls a tensor times a number sparse; what is sparse in truth comes from an input or a layer.
        return False
    return bool(getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False))


def contract_of(model: Any, compiled: compile_config.CompileConfig) -> contract_pb2.Contract:
    """Gives the contract of a built model, with batch 1 where its recurrent layers force that."""
    inputs, outputs = layers.input_names(model), layers.output_names(model)
    fixed = bool(layers.fixed_batch_layers(model))
    return contract_pb2.Contract(
        inputs=[_tensor(n, t, fixed) for n, t in zip(inputs, model.inputs, strict=True)],
        outputs=[
            _tensor(n, t, fixed, layers.meaning(model, index, compiled))
            for index, (n, t) in enumerate(zip(outputs, model.outputs, strict=True))
        ],
    )


def _tensor(name: str, tensor: Any, fixed_batch: bool, meaning: str = "") -> contract_pb2.TensorContract:
    shape = [-1 if size is None else int(size) for size in tensor.shape]
    if fixed_batch and shape:
        shape[0] = 1
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    return contract_pb2.TensorContract(name=name, shape=shape, dtype=dtype, meaning=meaning)


def load(path: Path, facts: KerasFile) -> tuple[Any, bool, tuple[str, ...]]:
    """Loads a scanned file: gives the model, whether it is Keras 3's, and notes.

    The library that wrote the file comes first, then the other one. Errors: MALFORMED_MODEL with the first one's cause
    where neither reads it.
    """
    first: Exception | None = None
    for keras3 in (facts.keras3, not facts.keras3):
        try:
            model = _load_with(path, keras3)
        except Exception as error:
            first = first or error
            continue
        library = "Keras 3" if keras3 else "tf_keras"
        notes = () if first is None else (f"read with {library}: the library that wrote it could not read it here",)
        return model, keras3, notes
    assert first is not None
    raise _malformed(path, first) from first


def _load_with(path: Path, keras3: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if keras3:
            import keras

            return keras.saving.load_model(str(path), compile=False, safe_mode=True)
        import tf_keras

        return tf_keras.models.load_model(str(path), compile=False, safe_mode=True)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _malformed(path: Path, error: Exception) -> SqueezeflowError:
    cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return SqueezeflowError(
        "MALFORMED_MODEL",
        f"the Keras file does not load ({cause[:300]}): save the model again and check that the upload is complete",
        metadata={"cause": type(error).__name__},
    )
