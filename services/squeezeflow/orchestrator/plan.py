"""A job as a graph of steps: what is called, with which parameters, on whose result. Pure: nothing is called here.

A node stands for one call of a compute rpc. Its id is a digest of everything that decides its result, so recipes that
share a prefix share its nodes, and jobs that want the same thing name it alike. Evaluation follows each candidate's
file; benchmarks come last and one after another, so that no latency is measured while something else runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from squeezeflow.core import recipes as shipped
from squeezeflow.core.canonical import canonical_json, message_json, sha256_text
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.orchestrator.recipes import GIVES_TFLITE, TRAINED, export_formats, one_shot
from squeezeflow.v1 import artifact_pb2, jobs_pb2, model_pb2, technique_pb2

EVALUATE, BENCHMARK = "evaluate", "benchmark"
_KERAS_KINDS = (artifact_pb2.ARTIFACT_KIND_KERAS, artifact_pb2.ARTIFACT_KIND_HDF5)
# Modes that calibrate, by the words that recipes have for them.
_CALIBRATED = {
    technique_pb2.Quantize.MODE_INT8: "int8",
    technique_pb2.Quantize.MODE_INT8_IO: "int8-io",
    technique_pb2.Quantize.MODE_UINT8_IO: "uint8-io",
    technique_pb2.Quantize.MODE_INT16X8: "int16x8",
}


@dataclass(frozen=True)
class DataFacts:
    """What a job's dataset offers. The default is a job without data.

    Attributes:
        train, test: whether there are arrays with targets.
        calibration: whether there are inputs to calibrate with: calibration arrays, or train ones.
    """

    train: bool = False
    calibration: bool = False
    test: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why a step cannot be called at all."""

    reason: str
    message: str


@dataclass(frozen=True)
class Node:
    """One call of a compute rpc.

    Attributes:
        id: `TECHNIQUE-DIGEST`; equal for equal calls.
        technique: as in `Technique`, or `evaluate`, `benchmark`.
        params: the technique's message as JSON, defaults filled in.
        parent: node whose artifact it takes; empty: the job's model.
        baseline: evaluate, benchmark: the node that gives the float32 file to compare with; empty: none.
        after: nodes that must have ended before, whatever came of them.
        refusal: why it cannot be called.
    """

    id: str
    technique: str
    params: Mapping[str, Any] = field(default_factory=dict)
    parent: str = ""
    baseline: str = ""
    after: tuple[str, ...] = ()
    refusal: Refusal | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The nodes without whose results it cannot be called."""
        return tuple(node for node in (self.parent, self.baseline) if node)


@dataclass(frozen=True)
class CandidatePlan:
    """How one recipe's candidate comes about.

    Attributes:
        steps: its nodes: techniques in order, exports, evaluate, benchmark.
        final: the node that gives its TFLite file.
        exports: format name → node.
    """

    recipe: str
    requested: bool
    steps: tuple[str, ...]
    final: str
    exports: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Nodes in an order in which every one comes after those it needs, and the candidates they make."""

    nodes: tuple[Node, ...]
    candidates: tuple[CandidatePlan, ...]


def make_plan(
    spec: jobs_pb2.JobSpec,
    recipes: Sequence[jobs_pb2.Recipe],
    description: model_pb2.ModelDescription,
    facts: DataFacts,
) -> Plan:
    """Plans a job.

    Args:
        recipes: the requested ones, as `recipes.resolve` gives them.
        description: of the model; a technique that does not take it is refused, and with it what comes after.
        facts: what the data offers; a technique that lacks its data is refused.

    Raises:
        SqueezeflowError: UNSUPPORTED_INPUT when not even the baseline or an asked export can be made.
    """
    _check_model(spec, description)
    return _Planner(spec, description, facts).plan(recipes)


def _check_model(spec: jobs_pb2.JobSpec, description: model_pb2.ModelDescription) -> None:
    why_not = _unsupported(description).get("convert")
    if why_not is not None:
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT", f"the model cannot be converted to float TFLite, so there is no baseline: {why_not}"
        )
    if "keras" in export_formats(spec) and not _is_keras(description):
        raise SqueezeflowError(
            "UNSUPPORTED_INPUT",
            f"a {description.format or 'SavedModel'} cannot be exported as .keras: export it as a SavedModel",
        )


def _is_keras(description: model_pb2.ModelDescription) -> bool:
    # A SavedModel has layers where tf_keras saved it and its signature is the model's forward pass.
    return description.artifact.kind in _KERAS_KINDS or bool(description.layers)


def _unsupported(description: model_pb2.ModelDescription) -> dict[str, str]:
    return {s.technique: s.reason or "unsupported" for s in description.techniques if not s.supported}


class _Planner:
    """Collects nodes; the same call is collected once."""

    def __init__(self, spec: jobs_pb2.JobSpec, description: model_pb2.ModelDescription, facts: DataFacts) -> None:
        self._exports = export_formats(spec)
        self._source = message_json(jobs_pb2.JobSpec(model=spec.model, data=spec.data))
        self._unsupported = _unsupported(description)
        self._saved_model = description.artifact.kind == artifact_pb2.ARTIFACT_KIND_SAVED_MODEL
        self._facts = facts
        self._nodes: dict[str, Node] = {}

    def plan(self, recipes: Sequence[jobs_pb2.Recipe]) -> Plan:
        """Gives the whole plan: the baseline first, then the recipes in their order."""
        requested = {recipe.name for recipe in recipes}
        others = [recipe for recipe in recipes if recipe.name != shipped.BASELINE]
        ordered = [shipped.named(shipped.BASELINE), *others]
        chains = [self._chain(recipe) for recipe in ordered]
        baseline = chains[0][-1]
        exports = [self._export_nodes(chain) for chain in chains]
        evaluations = [self._evaluation(chain[-1], baseline) for chain in chains]
        benchmarks = self._benchmarks([chain[-1] for chain in chains])
        candidates = tuple(
            CandidatePlan(
                recipe=recipe.name,
                requested=recipe.name in requested,
                steps=(*chain, *exported.values(), *evaluation, benchmarks[chain[-1]]),
                final=chain[-1],
                exports=exported,
            )
            for recipe, chain, exported, evaluation in zip(ordered, chains, exports, evaluations, strict=True)
        )
        return Plan(tuple(self._nodes.values()), candidates)

    def _chain(self, recipe: jobs_pb2.Recipe) -> list[str]:
        chain: list[str] = []
        for technique in recipe.techniques:
            name = technique.WhichOneof("technique") or ""
            params = getattr(technique, name)
            parent = chain[-1] if chain else ""
            chain.append(self._add(name, params, parent, refusal=self._refusal(name, params)))
        return chain

    def _export_nodes(self, chain: Sequence[str]) -> dict[str, str]:
        """Exports the last stage that is still a Keras model or a SavedModel: the source of the final file."""
        source = chain[-1]
        while source and self._nodes[source].technique in GIVES_TFLITE:
            source = self._nodes[source].parent
        return {name: self._add("export", export, source) for name, export in self._exports.items()}

    def _evaluation(self, final: str, baseline: str) -> list[str]:
        if not self._facts.test:
            return []
        return [self._add(EVALUATE, None, final, baseline=baseline if final != baseline else "")]

    def _benchmarks(self, finals: Sequence[str]) -> dict[str, str]:
        """Gives final node → benchmark node; the first waits for all that computes, each other for the one before."""
        after = tuple(self._nodes)
        benchmarks: dict[str, str] = {}
        for final in finals:
            if final not in benchmarks:
                baseline = finals[0] if final != finals[0] else ""
                benchmarks[final] = self._add(BENCHMARK, None, final, baseline=baseline, after=after)
                after = (benchmarks[final],)
        return benchmarks

    def _add(
        self,
        technique: str,
        params: Message | None,
        parent: str,
        *,
        baseline: str = "",
        after: tuple[str, ...] = (),
        refusal: Refusal | None = None,
    ) -> str:
        values = message_json(params) if params is not None else {}
        identity = canonical_json([technique, values, parent, baseline, self._source])
        node = Node(
            id=f"{technique}-{sha256_text(identity)[:16]}",
            technique=technique,
            params=values,
            parent=parent,
            baseline=baseline,
            after=after,
            refusal=refusal,
        )
        self._nodes.setdefault(node.id, node)
        return node.id

    def _refusal(self, technique: str, params: Message) -> Refusal | None:
        at_once = one_shot(params)
        if technique in self._unsupported and not (at_once and self._saved_model):
            why_not = self._unsupported[technique]
            return Refusal("UNSUPPORTED_INPUT", f"{technique} does not take this model: {why_not}")
        if technique in TRAINED and not at_once and not self._facts.train:
            return Refusal(
                "DATA_MISSING",
                f"{technique} fits the model and needs x_train and y_train: add them, or leave the recipe out",
            )
        calibrated = _CALIBRATED.get(params.mode, "") if isinstance(params, technique_pb2.Quantize) else ""
        if calibrated and not self._facts.calibration:
            return Refusal(
                "DATA_MISSING",
                f"{calibrated} calibrates with x_calibration or x_train: add one of them, or choose the recipe dynamic",
            )
        return None
