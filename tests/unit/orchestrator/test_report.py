"""A job put together from its record and its steps."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.orchestrator.builders import ALL_RECIPES, failed, nodes_of, record_of, succeeded

from squeezeflow.orchestrator.plan import BENCHMARK, EVALUATE, DataFacts
from squeezeflow.orchestrator.record import Accepted, JobRecord, StepView
from squeezeflow.orchestrator.report import CANCELLED, CANCELLING, FAILED, QUEUED, RUNNING, SUCCEEDED, Ending, assemble
from squeezeflow.orchestrator.workflow import blocked
from squeezeflow.v1 import errors_pb2, jobs_pb2, step_pb2


def all_succeeded(record: JobRecord) -> dict[str, StepView]:
    return {node.id: StepView(outcome=succeeded(node.id)) for node in record.plan.nodes}


def with_failure(record: JobRecord, node: str, **options: str) -> dict[str, StepView]:
    """Gives the steps after one failed and the workflow skipped what needs it."""
    outcomes = {}
    for each in record.plan.nodes:
        skipped = blocked(each, outcomes)
        outcomes[each.id] = failed(**options) if each.id == node else skipped or succeeded(each.id)
    return {name: StepView(outcome=outcome) for name, outcome in outcomes.items()}


def states(job: jobs_pb2.Job) -> dict[str, int]:
    return {candidate.recipe: candidate.state for candidate in job.candidates}


def test_a_job_that_waits_has_all_its_candidates_and_steps() -> None:
    record = record_of(*ALL_RECIPES)
    job = assemble(record, {})
    assert job.state == QUEUED
    assert set(states(job).values()) == {QUEUED}
    assert [step.technique for step in job.candidates[3].steps] == ["prune", "convert", "evaluate", "benchmark"]
    assert job.spec == record.spec
    assert job.notes == ["arrays not used: extra"]
    assert not job.HasField("start_time")
    assert not job.HasField("end_time")


def test_a_job_whose_steps_all_succeeded_has_succeeded() -> None:
    record = record_of(*ALL_RECIPES)
    job = assemble(record, all_succeeded(record))
    assert job.state == SUCCEEDED
    assert set(states(job).values()) == {SUCCEEDED}
    assert (job.create_time.seconds, job.start_time.seconds, job.end_time.seconds) == (1000, 1001, 1002)
    assert not job.HasField("error")


def test_a_running_step_makes_its_candidates_and_the_job_run() -> None:
    record = record_of("dynamic", "prune")
    (prune,) = nodes_of(record.plan, "prune")
    progress = step_pb2.StepProgress(fraction=0.25, stage="training", metrics={"loss": 0.5})
    accepted = Accepted("w:1", "a" * 64, 2, 1005.0)
    job = assemble(record, {prune: StepView(accepted=accepted, running=True, progress=progress)})
    assert job.state == RUNNING
    assert states(job) == {"float32": QUEUED, "dynamic": QUEUED, "prune": RUNNING}
    step = job.candidates[2].steps[0]
    assert (step.state, step.fraction, step.stage, step.worker, step.attempts) == (RUNNING, 0.25, "training", "w:1", 2)
    assert dict(step.metrics) == {"loss": 0.5}
    assert job.start_time.seconds == 1005


def test_one_failed_candidate_does_not_fail_the_others() -> None:
    record = record_of("dynamic", "prune", "prune-int8")
    (prune,) = nodes_of(record.plan, "prune")
    job = assemble(record, with_failure(record, prune, reason="UNSUPPORTED_LAYER"))
    assert job.state == SUCCEEDED
    assert states(job) == {"float32": SUCCEEDED, "dynamic": SUCCEEDED, "prune": FAILED, "prune-int8": FAILED}
    lost = job.candidates[3]
    assert lost.error.reason == "UNSUPPORTED_LAYER"
    assert [step.state for step in lost.steps] == [FAILED] * 4
    assert [step.stage for step in lost.steps][1:] == ["skipped"] * 3
    assert [step.attempts for step in lost.steps] == [1, 0, 0, 0]


def test_a_job_fails_when_no_requested_candidate_succeeded() -> None:
    record = record_of("dynamic")
    (quantize,) = nodes_of(record.plan, "quantize")
    job = assemble(record, with_failure(record, quantize, reason="OUTPUT_MISMATCH"))
    assert states(job) == {"float32": SUCCEEDED, "dynamic": FAILED}
    assert job.state == FAILED
    assert job.error.reason == "OUTPUT_MISMATCH"


def test_a_job_fails_with_its_baseline_and_says_why() -> None:
    record = record_of("dynamic", "prune")
    job = assemble(record, with_failure(record, record.plan.candidates[0].final, reason="UNSUPPORTED_OP"))
    assert job.state == FAILED
    assert job.error.reason == "UNSUPPORTED_OP"
    assert job.candidates[1].artifact  # its own file is there, only the comparison is not
    assert job.candidates[1].error.reason == "UNSUPPORTED_OP"


def test_a_requested_baseline_counts_as_requested() -> None:
    record = record_of("float32", "dynamic")
    (quantize,) = nodes_of(record.plan, "quantize")
    assert assemble(record, with_failure(record, quantize)).state == SUCCEEDED


def test_a_file_that_could_not_be_measured_is_told_but_has_not_succeeded() -> None:
    record = record_of("dynamic")
    evaluate = nodes_of(record.plan, EVALUATE)[1]
    job = assemble(record, with_failure(record, evaluate, reason="DATA_MISMATCH"))
    assert job.candidates[1].state == FAILED
    assert job.candidates[1].artifact
    assert job.candidates[1].error.reason == "DATA_MISMATCH"


def test_what_the_plan_refuses_is_told_before_anything_runs() -> None:
    record = record_of("dynamic", "int8", facts=DataFacts())
    job = assemble(record, {})
    assert job.state == QUEUED
    assert states(job) == {"float32": QUEUED, "dynamic": QUEUED, "int8": FAILED}
    assert job.candidates[2].error.reason == "DATA_MISSING"


def test_figures_come_from_the_file_and_from_what_measured_it() -> None:
    record = record_of("prune-int8")
    candidate = record.plan.candidates[1]
    steps = all_succeeded(record)
    evaluate = next(step for step in candidate.steps if step.startswith(EVALUATE))
    benchmark = next(step for step in candidate.steps if step.startswith(BENCHMARK))
    figures = {
        candidate.steps[0]: {"sqnr_db": 1.0, "max_abs_diff": 9.0},
        candidate.final: {"sqnr_db": 20.0},
        evaluate: {"accuracy": 0.9},
        benchmark: {"latency_ratio": 0.5},
    }
    for node, metrics in figures.items():
        named = {name: step_pb2.Metric(value=value) for name, value in metrics.items()}
        steps[node] = StepView(outcome=succeeded(node, metrics=named))
    found = {name: metric.value for name, metric in assemble(record, steps).candidates[1].metrics.items()}
    assert found == {"sqnr_db": 20.0, "accuracy": 0.9, "latency_ratio": 0.5}


def test_invariants_and_notes_of_all_steps_are_kept_in_order_and_once() -> None:
    record = record_of("prune")
    steps = all_succeeded(record)
    for index, node in enumerate(record.plan.candidates[1].steps[:2]):
        invariant = step_pb2.Invariant(name="finite", passed=True, detail=str(index))
        notes = ["arrays not used: extra", f"step {index}", "deflated size only"]
        steps[node] = StepView(outcome=succeeded(node, invariants=[invariant], notes=notes))
    candidate = assemble(record, steps).candidates[1]
    assert [invariant.detail for invariant in candidate.invariants] == ["0", "1"]
    assert candidate.notes == ["step 0", "deflated size only", "step 1"]


def test_exports_are_told_by_format() -> None:
    record = record_of("dynamic", exports=[{}])
    node = record.plan.candidates[1].exports["savedmodel"]
    job = assemble(record, all_succeeded(record))
    assert job.candidates[1].exports["savedmodel"] == succeeded(node).result.artifact.digest


def test_a_job_that_is_being_cancelled_says_so_until_it_is() -> None:
    record = record_of("dynamic")
    final = record.plan.candidates[0].final
    steps = {final: StepView(running=True)}
    job = assemble(record, steps, Ending(cancelling=True))
    assert (job.state, job.candidates[0].steps[0].state) == (CANCELLING, CANCELLING)
    job = assemble(record, steps, Ending(cancelling=True, ended=1009.0))
    assert job.state == CANCELLED
    assert states(job) == {"float32": CANCELLED, "dynamic": CANCELLED}
    assert job.end_time.seconds == 1009


def test_a_job_that_ended_before_it_was_cancelled_stays_as_it_is() -> None:
    record = record_of("dynamic")
    job = assemble(record, all_succeeded(record), Ending(cancelling=True, ended=1009.0))
    assert job.state == SUCCEEDED


def test_candidates_that_were_ready_when_their_job_was_cancelled_are_kept() -> None:
    record = record_of("dynamic", facts=DataFacts())
    steps = all_succeeded(record)
    steps[record.plan.nodes[-1].id] = StepView(running=True)
    job = assemble(record, steps, Ending(cancelling=True, ended=1009.0))
    assert job.state == CANCELLED
    assert states(job) == {"float32": SUCCEEDED, "dynamic": CANCELLED}


def test_a_failure_of_the_engine_fails_the_job() -> None:
    record = record_of("dynamic")
    error = errors_pb2.Error(reason="INTERNAL", message="a defect")
    job = assemble(record, {}, Ending(ended=1009.0, error=error))
    assert (job.state, job.error) == (FAILED, error)
    assert job.candidates[1].error.reason == "INTERNAL"


def test_seconds_and_attempts_are_those_of_the_call() -> None:
    record = record_of("dynamic")
    final = record.plan.candidates[0].final
    outcome = replace(succeeded(final, started=1001.0, ended=1003.5), attempts=3, metrics={"loss": 0.1})
    step = assemble(record, {final: StepView(outcome=outcome)}).candidates[0].steps[0]
    assert (step.seconds, step.attempts, step.state, step.fraction) == (2.5, 3, SUCCEEDED, 1.0)
    assert dict(step.metrics) == {"loss": 0.1}
