"""Who needs a step right now."""

from __future__ import annotations

import asyncio

from squeezeflow.orchestrator.references import References

KEY = ("default", "prune-1")


async def test_only_the_last_holder_may_end_a_step() -> None:
    references = References()
    async with references.hold(KEY):
        assert references.last(KEY)
        async with references.hold(KEY), references.hold(("other", "prune-1")):
            assert not references.last(KEY)
        assert references.last(KEY)


async def test_a_step_that_is_being_ended_is_not_held_before_it_has_ended() -> None:
    references = References()
    held: list[str] = []

    async def other() -> None:
        async with references.hold(KEY):
            held.append("held")

    async with references.hold(KEY):
        with references.ending(KEY):
            waiting = asyncio.create_task(other())
            await asyncio.sleep(0.01)
            assert held == []
    await asyncio.wait_for(waiting, 5)
    assert held == ["held"]
