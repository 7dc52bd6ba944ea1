"""The checkpoint of a step between its child and the store, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

import pytest

from squeezeflow.core.checkpoints import LEFTOVER
from squeezeflow.core.step import Checkpoint
from squeezeflow.core.store import Store, open_store
from squeezeflow.rpc.checkpointing import StepCheckpoint

ACTION, OTHER = "a" * 64, "b" * 64
PREFIX = "tenants/default/checkpoints/"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store(f"dir:{tmp_path / 'store'}")


async def begun(store: Store, folder: Path) -> tuple[StepCheckpoint, Checkpoint]:
    step = StepCheckpoint(store, "default", ACTION, 5.0)
    return step, await step.fetch(folder)


async def stored(store: Store, state: bytes) -> None:
    async with asyncio.timeout(10):
        while PREFIX + ACTION not in store.list(PREFIX) or store.get_bytes(PREFIX + ACTION) != state:
            await asyncio.sleep(0.01)


async def test_the_child_is_told_whose_checkpoint_it_is(store: Store, tmp_path: Path) -> None:
    _, given = await begun(store, tmp_path / "child")
    assert (given.path.parent, given.seconds, given.action) == (tmp_path / "child", 5.0, ACTION)
    assert not given.path.exists()


async def test_a_store_that_is_away_costs_a_checkpoint_and_a_warning(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, away = tmp_path / "store", tmp_path / "away"
    step, given = await begun(store, tmp_path / "child")
    root.rename(away)
    given.path.write_bytes(b"first")
    step.look({"checkpoint": 1})
    async with asyncio.timeout(10):
        while "cannot be stored" not in caplog.text:
            await asyncio.sleep(0.01)
    away.rename(root)
    given.path.write_bytes(b"second")
    step.look({"checkpoint": 2})
    await stored(store, b"second")
    root.rename(away)
    caplog.clear()
    await step.settle(forget=True)
    assert "cannot be removed" in caplog.text
    step, given = await begun(store, tmp_path / "another child")
    assert "cannot be read" in caplog.text
    assert not given.path.exists()
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_two_workers_of_one_step_keep_a_whole_state_each(store: Store, tmp_path: Path) -> None:
    workers = [await begun(store, tmp_path / name) for name in ("one", "two")]
    states = [bytes([index]) * 3_000_000 for index in range(2)]
    for number in range(1, 6):
        for (step, given), state in zip(workers, states, strict=True):
            given.path.write_bytes(state)
            step.look({"checkpoint": number})
        await asyncio.sleep(0.01)
        if store.list(PREFIX):
            assert store.get_bytes(PREFIX + ACTION) in states
    for step, _ in workers:
        await step.settle(forget=False)
    _, given = await begun(store, tmp_path / "three")
    assert given.path.read_bytes() in states


async def test_what_a_dead_worker_left_is_removed_when_it_is_old(store: Store, tmp_path: Path) -> None:
    for action in (OTHER, "c" * 64):
        store.put_bytes(PREFIX + action, b"left")
    old = time.time() - LEFTOVER.total_seconds() - 60
    os.utime(tmp_path / "store" / PREFIX / OTHER, (old, old))
    step, given = await begun(store, tmp_path / "child")
    given.path.write_bytes(b"mine")
    step.look({"checkpoint": 1})
    await stored(store, b"mine")
    await step.settle(forget=False)
    assert store.list(PREFIX) == [PREFIX + ACTION, PREFIX + "c" * 64]
