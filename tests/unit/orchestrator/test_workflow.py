"""The workflow over an engine in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import pytest
from tests.unit.orchestrator.builders import ALL_RECIPES, failed, nodes_of, plan_of, spec_of, succeeded
from tests.unit.orchestrator.memory_engine import MemoryRun

from squeezeflow.orchestrator.engine import RunCancelled
from squeezeflow.orchestrator.plan import BENCHMARK, DataFacts, Node, Plan
from squeezeflow.orchestrator.record import Outcome
from squeezeflow.orchestrator.workflow import run_plan
from squeezeflow.v1 import step_pb2

PLAN = plan_of(spec_of(*ALL_RECIPES))


class Crash(BaseException):
    """The process dies."""


class Performer:
    """Performs steps in a random order of ends, writes down what it did, fails or dies where it is told."""

    def __init__(self, seed: int = 0, *, fails: str = "", dies_after: int = 10**9) -> None:
        self.rng = random.Random(seed)
        self.fails, self.dies_after = fails, dies_after
        self.began: list[str] = []
        self.ended: list[str] = []
        self.outcomes: dict[str, Outcome] = {}

    async def perform(self, node: Node, results: Mapping[str, step_pb2.StepResult]) -> Outcome:
        assert set(results) == set(node.needs)
        self.began.append(node.id)
        for _ in range(self.rng.randrange(6)):
            await asyncio.sleep(0)
        if len(self.ended) >= self.dies_after:
            raise Crash
        self.ended.append(node.id)
        return failed() if node.id == self.fails else succeeded(node.id)

    async def run(self, run: MemoryRun, plan: Plan = PLAN) -> dict[str, Outcome]:
        await run_plan(run, plan, self.perform, self.outcomes.__setitem__)
        return self.outcomes


async def test_every_node_runs_once_and_none_before_what_it_needs() -> None:
    for seed in range(20):
        performer = Performer(seed)
        outcomes = await performer.run(MemoryRun())
        assert sorted(performer.began) == sorted(node.id for node in PLAN.nodes) == sorted(outcomes)
        for node in PLAN.nodes:
            for needed in node.needs:
                assert performer.ended.index(needed) < performer.began.index(node.id)


async def test_benchmarks_run_alone_and_last() -> None:
    performer = Performer(3)
    await performer.run(MemoryRun())
    benchmarks = nodes_of(PLAN, BENCHMARK)
    assert performer.began[-len(benchmarks) :] == benchmarks == performer.ended[-len(benchmarks) :]


async def test_what_can_run_at_the_same_time_does() -> None:
    running: list[int] = []
    at_once = 0

    async def perform(node: Node, results: Mapping[str, step_pb2.StepResult]) -> Outcome:
        nonlocal at_once
        running.append(1)
        at_once = max(at_once, len(running))
        await asyncio.sleep(0.01)
        running.pop()
        return succeeded(node.id)

    await run_plan(MemoryRun(), PLAN, perform, lambda node, outcome: None)
    assert at_once >= 4  # float32, dynamic, int8, prune to begin with


async def test_a_run_that_died_goes_on_without_doing_anything_twice() -> None:
    whole = await Performer().run(MemoryRun())
    for dies_after in range(len(PLAN.nodes)):
        run, first = MemoryRun(), Performer(dies_after, dies_after=dies_after)
        with pytest.raises(Crash):
            await first.run(run)
        second = Performer(dies_after + 100)
        outcomes = await second.run(run.again())
        kept = {name for name, _ in run.kept.values()}
        assert kept == {node.id for node in PLAN.nodes}
        assert not set(second.began) & set(first.ended), "a finished step was made again"
        assert outcomes == whole


async def test_what_needs_a_failed_step_is_skipped_with_its_error() -> None:
    (prune,) = nodes_of(PLAN, "prune")
    performer = Performer(fails=prune)
    outcomes = await performer.run(MemoryRun())
    skipped = {name for name, outcome in outcomes.items() if outcome.error is not None} - {prune}
    assert len(skipped) == 6  # convert and quantize of the pruned model, and what measures the two
    assert not skipped & set(performer.began)
    assert {outcomes[name].error.reason for name in skipped} == {"INVARIANT_BROKEN"}
    assert {outcomes[name].attempts for name in skipped} == {0}


async def test_what_the_plan_refuses_is_not_called() -> None:
    plan = plan_of(spec_of("int8"), DataFacts())
    performer = Performer()
    outcomes = await performer.run(MemoryRun(), plan)
    (quantize,) = nodes_of(plan, "quantize")
    assert quantize not in performer.began
    assert outcomes[quantize].error.reason == "DATA_MISSING"


async def test_a_failure_is_kept_like_a_result() -> None:
    (prune,) = nodes_of(PLAN, "prune")
    run = MemoryRun()
    first = await Performer(fails=prune).run(run)
    again = Performer()
    assert await again.run(run.again()) == first
    assert again.began == []


async def test_a_cancelled_run_says_so_and_leaves_nothing_running() -> None:
    run = MemoryRun()
    started = asyncio.Event()

    async def perform(node: Node, results: Mapping[str, step_pb2.StepResult]) -> Outcome:
        if node.technique == "prune":
            started.set()
            run.cancelled = True
            raise RunCancelled
        await asyncio.sleep(3600)
        raise AssertionError

    before = asyncio.all_tasks()
    with pytest.raises(RunCancelled):
        await asyncio.wait_for(run_plan(run, PLAN, perform, lambda node, outcome: None), 10)
    assert started.is_set()
    assert asyncio.all_tasks() == before
