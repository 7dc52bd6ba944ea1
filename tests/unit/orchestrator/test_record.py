"""What the engine keeps, to JSON and back."""

from __future__ import annotations

import json

from tests.unit.orchestrator.builders import ALL_RECIPES, failed, record_of, succeeded

from squeezeflow.orchestrator.plan import DataFacts
from squeezeflow.orchestrator.record import Accepted, JobRecord, Outcome
from squeezeflow.v1 import step_pb2


def through_json(value: object) -> object:
    return json.loads(json.dumps(value))


def test_a_record_comes_back_as_it_was() -> None:
    for facts in (DataFacts(), DataFacts(train=True, calibration=True, test=True)):
        record = record_of(*ALL_RECIPES, facts=facts, exports=[{}])
        assert JobRecord.from_json(through_json(record.to_json())) == record


def test_outcomes_come_back_as_they_were() -> None:
    metrics = {"accuracy": step_pb2.Metric(value=0.9, low=0.8, high=0.95, samples=100)}
    for outcome in (succeeded("a", metrics=metrics, notes=["n"]), failed(), Outcome()):
        assert Outcome.from_json(through_json(outcome.to_json())) == outcome


def test_where_a_step_runs_comes_back() -> None:
    accepted = Accepted("10.0.0.1:7072", "a" * 64, 2, 1000.5)
    assert Accepted.from_json(through_json(accepted.to_json())) == accepted


def test_jobs_of_two_tenants_never_share_a_key() -> None:
    record = record_of("dynamic")
    assert record.key == "default:job-1"
