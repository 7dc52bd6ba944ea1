"""The polynomial decay ends at its target, whatever the number of steps."""

from __future__ import annotations

import pytest

from squeezeflow.pruner.schedule import UPDATES, Schedule, schedule


@pytest.mark.parametrize("ramp", [0.05, 0.37, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 51, 99, 626, 12345])
def test_the_last_step_of_the_decay_is_a_pruning_step_of_the_fit(steps: int, ramp: float) -> None:
    plan = schedule(steps, ramp)
    assert 0 <= plan.begin < plan.end <= steps
    assert (plan.end - plan.begin) % plan.frequency == 0


@pytest.mark.parametrize("steps", [200, 626, 12345])
def test_masks_are_chosen_often_but_not_at_every_step(steps: int) -> None:
    plan = schedule(steps, 0.6)
    updates = (plan.end - plan.begin) // plan.frequency
    assert UPDATES <= updates < 2 * UPDATES
    assert abs(plan.end - 0.6 * steps) <= plan.frequency + 1


def test_two_steps_prune_at_both() -> None:
    assert schedule(2, 0.6) == Schedule(1, 2, 1)


def test_one_step_prunes_to_the_target_at_once() -> None:
    assert schedule(1, 0.6) == Schedule(0, 1, 1)
