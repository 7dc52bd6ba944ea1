"""Reads the graph of a SavedModel without loading it, and names operations that reach outside of the graph.

Loading a SavedModel runs its initialisers, and so does converting it; both have been seen to write files. Every graph
and every function in it is looked at, reachable or not. Saving and restoring variables is part of every SavedModel:
those operations are let through only where the loader itself calls them, with a file name that comes from outside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from squeezeflow.modelkit.scan_config import scan_config

_CODE = re.compile(r"PyFunc(Stateless)?|EagerPyFunc|\w*PyFunc\w*")
_FILES = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|Save|SaveSlices|SaveV2|Restore|RestoreSlice|RestoreV2|MergeV2Checkpoints"
    r"|LoadAndRemapMatrix|GenerateVocabRemapping|InitializeTableFromTextFile(V2)?|FixedUnigramCandidateSampler"
    r"|RecordInput|ImmutableConst|DecodeProto(V2)?|EncodeProto|FileSystemSetConfiguration|DistributedSave"
    r"|CheckpointNameRegexes|CreateSummary\w+|Write\w*Summary|ImportEvent|\w*Reader(V2)?|Reader\w+|LMDBReader"
    r"|\w*Dataset(V\d)?|\w*Iterator\w*"
)
_NETWORK = re.compile(
    r"_?(Host)?(Send|Recv)|RemoteCall|Collective\w+|Nccl\w+|Debug\w+|WorkerHeartbeat|Rpc\w*|\w*TPU\w*"
)
_SAVERS = frozenset({"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename", "Save", "Restore"})
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})


def scan_saved_model(folder: Path) -> list[str]:
    """Gives the findings of a SavedModel folder.

    Errors: MALFORMED_MODEL.
    """
    from squeezeflow.modelkit import saved_model_source

    message = saved_model_source.read_proto(folder)
    findings: dict[str, None] = {}
    for graph in message.meta_graphs:
        findings.update(dict.fromkeys(_scan_graph(graph)))
    findings.update(dict.fromkeys(_scan_metadata(folder / "keras_metadata.pb")))
    return list(findings)


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


def _scan_metadata(path: Path) -> Iterator[str]:
    """Looks for Lambda layers in what tf_keras wrote beside the graph; classes of its own are only names there."""
    if not path.is_file():
        return
    from tf_keras.protobuf import saved_metadata_pb2

    metadata = saved_metadata_pb2.SavedMetadata()
    metadata.ParseFromString(path.read_bytes())
    for node in metadata.nodes:
        try:
            config = json.loads(node.metadata)
        except ValueError:
            continue
        for finding in scan_config(config):
            if "carries or loads code" in finding or "Python lambda" in finding:
                yield finding
