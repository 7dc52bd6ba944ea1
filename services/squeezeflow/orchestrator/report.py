"""Puts a job together from its record and its steps, as clients see it. Pure: the same steps give the same job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from squeezeflow.orchestrator.plan import CandidatePlan, Node
from squeezeflow.orchestrator.record import JobRecord, StepView
from squeezeflow.v1 import errors_pb2, jobs_pb2, step_pb2

QUEUED = jobs_pb2.JOB_STATE_QUEUED
RUNNING = jobs_pb2.JOB_STATE_RUNNING
SUCCEEDED = jobs_pb2.JOB_STATE_SUCCEEDED
FAILED = jobs_pb2.JOB_STATE_FAILED
CANCELLING = jobs_pb2.JOB_STATE_CANCELLING
CANCELLED = jobs_pb2.JOB_STATE_CANCELLED
FINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})

_WAITING = StepView()


@dataclass(frozen=True)
class Ending:
    """What besides the steps decides a job's state.

    Attributes:
        cancelling: a caller asked for its end.
        ended: when it was ended before all its steps were (seconds since the epoch); 0 where it was not.
        error: why, where no caller asked: a failure of the engine itself.
    """

    cancelling: bool = False
    ended: float = 0.0
    error: errors_pb2.Error | None = None

    @property
    def cancelled(self) -> bool:
        """Whether a caller's wish has been carried out."""
        return bool(self.ended) and self.error is None


def assemble(record: JobRecord, steps: Mapping[str, StepView], ending: Ending = Ending()) -> jobs_pb2.Job:
    """Gives the job as it stands.

    Args:
        steps: by node; one that is not there waits.
        ending: what was done to the job as a whole.
    """
    job = jobs_pb2.Job(id=record.id, spec=record.spec, notes=record.notes)
    nodes = {node.id: node for node in record.plan.nodes}
    for plan in record.plan.candidates:
        job.candidates.append(_candidate(plan, nodes, steps, ending, record.notes))
    job.create_time.FromMilliseconds(int(record.created * 1000))
    called = [step.outcome or step.accepted for step in steps.values() if step.outcome or step.accepted]
    started = [each.started for each in called if each is not None and each.started]
    if started:
        job.start_time.FromMilliseconds(int(min(started) * 1000))
    job.state = _job_state(job, ending)
    if job.state in FINAL:
        ended = [step.outcome.ended for step in steps.values() if step.outcome is not None]
        job.end_time.FromMilliseconds(int(max([*ended, ending.ended, record.created]) * 1000))
    if job.state == FAILED:
        job.error.CopyFrom(ending.error or _first_error(job))
    return job


def _job_state(job: jobs_pb2.Job, ending: Ending) -> jobs_pb2.JobState:
    if ending.error is not None:
        return FAILED
    steps = {step.state for candidate in job.candidates for step in candidate.steps}
    if steps <= {SUCCEEDED, FAILED}:
        requested = {candidate.state for candidate in job.candidates if candidate.requested}
        return SUCCEEDED if SUCCEEDED in requested and job.candidates[0].state == SUCCEEDED else FAILED
    if ending.cancelled:
        return CANCELLED
    if ending.cancelling:
        return CANCELLING
    return RUNNING if RUNNING in steps or job.HasField("start_time") else QUEUED


def _first_error(job: jobs_pb2.Job) -> errors_pb2.Error:
    """Gives the error of the baseline, else of the first requested candidate that failed."""
    failed = [c for c in job.candidates if c.state == FAILED]
    decisive = [c for c in failed if c is job.candidates[0] or c.requested]
    return (decisive or failed)[0].error


def _candidate(
    plan: CandidatePlan,
    nodes: Mapping[str, Node],
    steps: Mapping[str, StepView],
    ending: Ending,
    known: Iterable[str],
) -> jobs_pb2.Candidate:
    candidate = jobs_pb2.Candidate(recipe=plan.recipe, requested=plan.requested)
    notes: dict[str, None] = {}
    for name in plan.steps:
        view = steps.get(name, _WAITING)
        candidate.steps.append(_step(nodes[name], view, ending))
        result = view.outcome.result if view.outcome is not None else None
        if result is not None:
            candidate.invariants.extend(result.invariants)
            notes.update(dict.fromkeys(result.notes))
    _fill_figures(candidate, plan, nodes, steps)
    candidate.notes.extend(note for note in notes if note not in set(known))
    for name, node in plan.exports.items():
        exported = _result(steps, node)
        if exported is not None:
            candidate.exports[name] = exported.artifact.digest
    candidate.state = _candidate_state(candidate, ending)
    if candidate.state == FAILED:
        candidate.error.CopyFrom(_candidate_error(plan, nodes, steps))
    return candidate


def _fill_figures(
    candidate: jobs_pb2.Candidate, plan: CandidatePlan, nodes: Mapping[str, Node], steps: Mapping[str, StepView]
) -> None:
    """Takes file, contract and sizes from the step that gave the file; metrics from it and from what measured it."""
    final = _result(steps, plan.final)
    if final is None:
        return
    candidate.artifact, candidate.contract = final.artifact.digest, final.contract
    if final.HasField("sizes"):
        candidate.sizes.CopyFrom(final.sizes)
    measuring = [name for name in plan.steps if nodes[name].parent == plan.final]
    for name in (plan.final, *measuring):
        result = _result(steps, name)
        for metric, value in result.metrics.items() if result is not None else ():
            candidate.metrics[metric].CopyFrom(value)


def _candidate_state(candidate: jobs_pb2.Candidate, ending: Ending) -> jobs_pb2.JobState:
    states = {step.state for step in candidate.steps}
    if FAILED in states or ending.error is not None:
        return FAILED
    if states == {SUCCEEDED}:
        return SUCCEEDED
    if ending.cancelled:
        return CANCELLED
    if ending.cancelling:
        return CANCELLING
    return RUNNING if states & {RUNNING, SUCCEEDED} else QUEUED


def _candidate_error(plan: CandidatePlan, nodes: Mapping[str, Node], steps: Mapping[str, StepView]) -> errors_pb2.Error:
    for name in plan.steps:
        outcome, refusal = steps.get(name, _WAITING).outcome, nodes[name].refusal
        if outcome is not None and outcome.error is not None:
            return outcome.error
        if refusal is not None:
            return errors_pb2.Error(reason=refusal.reason, message=refusal.message)
    return errors_pb2.Error(reason="INTERNAL", message="the job could not go on: see its error")


def _step(node: Node, view: StepView, ending: Ending) -> jobs_pb2.CandidateStep:
    step = jobs_pb2.CandidateStep(technique=node.technique, state=_step_state(node, view, ending))
    if view.accepted is not None:
        step.action, step.worker, step.attempts = view.accepted.action, view.accepted.worker, view.accepted.attempts
        step.cached = view.cached
    step.fraction, step.stage = view.progress.fraction, view.progress.stage
    step.metrics.update(view.progress.metrics)
    outcome = view.outcome
    if outcome is None:
        return step
    step.action, step.worker, step.attempts = outcome.action, outcome.worker, outcome.attempts
    step.seconds = max(0.0, outcome.ended - outcome.started)
    step.metrics.update(outcome.metrics)
    if outcome.result is not None:
        _fill_result(step, outcome.result)
    elif not outcome.attempts:
        step.stage = "skipped"
    return step


def _fill_result(step: jobs_pb2.CandidateStep, result: step_pb2.StepResult) -> None:
    step.fraction, step.stage, step.cached = 1.0, "done", result.cached
    step.layers.extend(result.layers)
    if result.HasField("artifact"):
        step.artifact = result.artifact.digest
    if result.HasField("logs"):
        step.logs = result.logs.digest
    if result.HasField("sizes"):
        step.sizes.CopyFrom(result.sizes)


def _step_state(node: Node, view: StepView, ending: Ending) -> jobs_pb2.JobState:
    if view.outcome is not None:
        return SUCCEEDED if view.outcome.error is None else FAILED
    if node.refusal is not None:
        return FAILED
    if ending.ended:
        return CANCELLED
    if ending.cancelling and view.running:
        return CANCELLING
    return RUNNING if view.running else QUEUED


def _result(steps: Mapping[str, StepView], node: str) -> step_pb2.StepResult | None:
    outcome = steps.get(node, _WAITING).outcome
    return outcome.result if outcome is not None else None
