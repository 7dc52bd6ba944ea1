"""The one workflow: every node of a plan runs as soon as what it needs is there, each at most once.

Slots are reserved in the plan's order before anything runs, so a run that is repeated after a crash finds every result
again, in whatever order the steps ended the first time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from squeezeflow.orchestrator.engine import Durable
from squeezeflow.orchestrator.plan import Node, Plan
from squeezeflow.orchestrator.record import Outcome
from squeezeflow.v1 import errors_pb2, step_pb2

Perform = Callable[[Node, Mapping[str, step_pb2.StepResult]], Awaitable[Outcome]]
OnOutcome = Callable[[str, Outcome], None]


async def run_plan(durable: Durable, plan: Plan, perform: Perform, on_outcome: OnOutcome) -> None:
    """Runs all nodes to an outcome.

    Args:
        perform: calls a node's step, given the results it needs; failures come back as outcomes.
        on_outcome: told every outcome, repeated and skipped ones too.
    """
    slots = {node.id: durable.reserve(node.id) for node in plan.nodes}
    tasks: dict[str, asyncio.Task[Outcome]] = {}

    async def run_node(node: Node) -> Outcome:
        before = [tasks[name] for name in (*node.needs, *node.after)]
        if before:
            await asyncio.wait(before)
        outcome = blocked(node, {name: tasks[name].result() for name in node.needs})
        if outcome is None:
            results = {name: _result(tasks[name].result()) for name in node.needs}

            async def work() -> dict[str, object]:
                return (await perform(node, results)).to_json()

            outcome = Outcome.from_json(await slots[node.id].run(work))
        on_outcome(node.id, outcome)
        return outcome

    for node in plan.nodes:
        tasks[node.id] = asyncio.create_task(run_node(node), name=node.id)
    await _all(list(tasks.values()))


async def _all(tasks: list[asyncio.Task[Outcome]]) -> None:
    """Waits for all tasks; when one is cut short, the others are too, and its reason is raised."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        unfinished = [task for task in tasks if not task.done()]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
    for task in done:
        task.result()


def blocked(node: Node, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """Gives the outcome of a node that cannot be called: refused by the plan, or something it needs has failed."""
    if node.refusal is not None:
        return Outcome(error=errors_pb2.Error(reason=node.refusal.reason, message=node.refusal.message))
    for needed in node.needs:
        if needed in outcomes and outcomes[needed].error is not None:
            return Outcome(error=outcomes[needed].error)
    return None


def _result(outcome: Outcome) -> step_pb2.StepResult:
    if outcome.result is None:
        raise ValueError("a step without a result cannot be built upon")
    return outcome.result
