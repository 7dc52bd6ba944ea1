"""Reads the graph of a SavedModel without loading it, and names operations that reach outside of the graph.

Loading a SavedModel runs its initialisers, and so does converting it; both have been seen to write files. Every graph
and every function in it is looked at, reachable or not. An operation is let through when TensorFlow knows it as one
without effects, or when it is listed here: variables, tables, random numbers, calls. Saving and restoring variables is
part of every SavedModel: those operations are let through only where the loader itself calls them, with a file name
that comes from outside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from squeezeflow.modelkit import keras_metadata
from squeezeflow.modelkit.scan_config import scan_names

# Operations with effects that stay within the model: on its variables, tables, lists and random numbers.
_STATE = re.compile(
    r"Placeholder\w*|_Arg|_Retval|NoOp|Assert|CheckNumerics(V2)?|GuaranteeConst|Print(V2)?|Timestamp"
    r"|VarHandleOp|VarIsInitializedOp|IsVariableInitialized|Variable(V2)?|TemporaryVariable|DestroyTemporaryVariable"
    r"|ReadVariableOp|_ReadVariablesOp|Assign\w*|VariableShape|Resource\w+|Scatter\w+"
    r"|CountUpTo|DestroyResourceOp|DisableCopyOnRead"
    r"|(Anonymous|Mutable)*(DenseHash|Hash)Table\w*|LookupTable\w+|InitializeTable(V2)?"
    r"|TensorArray\w*|Stack\w*|Random\w+|Truncated\w+|ParameterizedTruncatedNormal|Multinomial|Rng\w+|Stateful\w+"
    r"|PartitionedCall|While|If|Case|SymbolicGradient|CudnnRNN\w*|\w*CandidateSampler"
    r"|IteratorGetNext|StatelessRandomGetAlg|SampleDistortedBoundingBox(V2)?|DeepCopy"
)
_CODE = re.compile(r"PyFunc(Stateless)?|EagerPyFunc|\w*PyFunc\w*")
_FILES = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|Save|SaveSlices|SaveV2|Restore|RestoreSlice|RestoreV2|MergeV2Checkpoints"
    r"|LoadAndRemapMatrix|GenerateVocabRemapping|InitializeTableFromTextFile(V2)?|FixedUnigramCandidateSampler"
    r"|RecordInput|ImmutableConst|DecodeProto(V2)?|EncodeProto|FileSystemSetConfiguration|DistributedSave"
    r"|CheckpointNameRegexes|CreateSummary\w+|Write\w*Summary|ImportEvent|\w*Reader(V2)?|Reader\w+|LMDBReader"
    # `IteratorGetNext` stays in the function by which a Normalization layer was adapted; what could give it an iterator
    # to read from is refused.
    r"|\w*Dataset\w*|(?!IteratorGetNext$)\w*Iterator\w*"
)
_NETWORK = re.compile(
    r"_?(Host)?(Send|Recv)|RemoteCall|RemoteFusedGraphExecute|Collective\w+|Nccl\w+|Debug\w+|WorkerHeartbeat|Rpc\w*"
    r"|Xla\w+|\w*TPU\w*"
)
_SAVERS = frozenset({"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename", "Save", "Restore"})
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})


def scan_saved_model(folder: Path) -> list[str]:
    """Gives the findings of a SavedModel folder.

    Errors: MALFORMED_MODEL.
    """
    from squeezeflow.modelkit import saved_model_source

    message = saved_model_source.read_proto(folder)
    findings: dict[str, None] = dict.fromkeys(_scan_files(folder))
    for graph in message.meta_graphs:
        findings.update(dict.fromkeys(_scan_graph(graph)))
        findings.update(dict.fromkeys(_scan_assets(graph)))
        # Where TensorFlow 2.0 to 2.4 kept what is in keras_metadata.pb now.
        nodes = [node.user_object.metadata for node in graph.object_graph_def.nodes]
        findings.update(dict.fromkeys(_scan_metadata(nodes)))
    findings.update(dict.fromkeys(_scan_metadata(text for _, text in keras_metadata.nodes(folder))))
    return list(findings)


def _scan_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            yield f"{path.relative_to(folder)}: a link to {path.readlink()}"


def _scan_assets(graph: Any) -> Iterator[str]:
    """Names assets that lie outside of the folder: the loader opens whatever path they have."""
    for asset in graph.asset_file_def:
        parts = PurePosixPath(asset.filename).parts
        if not parts or parts[0] == "/" or ".." in parts or "://" in asset.filename or "\\" in asset.filename:
            yield f"the asset {asset.filename[:200]!r} lies outside of the model"


def _scan_graph(graph: Any) -> Iterator[str]:
    functions = graph.graph_def.library.function
    saving = {f.signature.name for f in functions if any(node.op in _SAVERS for node in f.node_def)}
    saving -= _called(functions, graph)
    for function in functions:
        name = function.signature.name
        yield from _scan_nodes(function.node_def, f"function {name}", let_save=name in saving)
    yield from _scan_nodes(graph.graph_def.node, "graph", let_save=not saving and _saver_is_apart(graph))


def _scan_nodes(nodes: Iterable[Any], place: str, *, let_save: bool) -> Iterator[str]:
    for node in nodes:
        if let_save and node.op in _SAVERS:
            continue
        if node.op == "PrintV2":
            if node.attr["output_stream"].s.startswith(b"file"):
                yield f"{place}: operation PrintV2 writes a file"
        elif _CODE.fullmatch(node.op):
            yield f"{place}: operation {node.op} runs Python code"
        elif _FILES.fullmatch(node.op):
            yield f"{place}: operation {node.op} reads or writes files"
        elif _NETWORK.fullmatch(node.op):
            yield f"{place}: operation {node.op} reaches other processes"
        elif not _is_harmless(node.op):
            yield f"{place}: operation {node.op[:100]} is not known to be harmless"


def _is_harmless(name: str) -> bool:
    """Tells whether an operation does nothing but compute, or changes nothing but the model's own state."""
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(name)
    if definition is None or name == "Abort":
        return False
    return not definition.is_stateful or _STATE.fullmatch(name) is not None


def _called(functions: Iterable[Any], graph: Any) -> set[str]:
    """Names functions that anything but the loader's own save and restore can call.

    Those are functions called by other functions, by objects of the model (initialisers among them), or by the graph
    with a file name that is not the saver's placeholder.
    """
    called = set(graph.object_graph_def.concrete_functions)
    for function in functions:
        for node in function.node_def:
            for attribute in node.attr.values():
                called.update([attribute.func.name, *(f.name for f in attribute.list.func)])
    placeholder = graph.saver_def.filename_tensor_name.split(":")[0]
    for node in graph.graph_def.node:
        from_saver = node.op in _CALLS and node.input and placeholder and node.input[0].split(":")[0] == placeholder
        if not from_saver:
            for attribute in node.attr.values():
                called.update([attribute.func.name, *(f.name for f in attribute.list.func)])
    kinds = {node.name: node.op for node in graph.graph_def.node}
    if kinds.get(placeholder) != "Placeholder":
        called.update(function.signature.name for function in functions)
    return called


def _saver_is_apart(graph: Any) -> bool:
    """Tells whether no signature and no initialiser of an old (TensorFlow 1) graph depends on its save operations."""
    nodes = {node.name: node for node in graph.graph_def.node}
    pending = [
        info.name.split(":")[0]
        for signature in graph.signature_def.values()
        for info in [*signature.outputs.values(), *signature.inputs.values()]
    ]
    for collection in graph.collection_def.values():
        pending += [name.lstrip("^").split(":")[0] for name in collection.node_list.value]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        if nodes[name].op in _SAVERS:
            return False
        pending += [item.lstrip("^").split(":")[0] for item in nodes[name].input]
    return True


def _scan_metadata(texts: Iterable[str]) -> Iterator[str]:
    """Looks for code in what tf_keras wrote beside the graph.

    Classes of its own are only names there: a model with one is never rebuilt, its graph is taken.
    """
    for text in texts:
        try:
            config = json.loads(text)
        except ValueError:
            continue
        except RecursionError:
            yield "the model: configuration nested without end"
            continue
        yield from scan_names(config, "the model")
