"""Checkpoints in the store: one an action and tenant, replaced and removed as a whole."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from squeezeflow.core import checkpoints
from squeezeflow.core.checkpoints import Checkpoints
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.store import Store, open_store

ACTION, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store(f"dir:{tmp_path / 'store'}")


def test_what_is_put_is_fetched_until_it_is_replaced_or_deleted(store: Store, tmp_path: Path) -> None:
    kept, path = Checkpoints(store, "default"), tmp_path / "state"
    assert not kept.fetch(ACTION, tmp_path / "fetched")
    for state in (b"first" * 500_000, b"second"):
        path.write_bytes(state)
        kept.put(ACTION, path)
        assert kept.fetch(ACTION, tmp_path / "fetched")
        assert (tmp_path / "fetched").read_bytes() == state
    assert store.list("tenants/default/") == [f"tenants/default/checkpoints/{ACTION}"]
    kept.delete(ACTION)
    kept.delete(ACTION)
    (tmp_path / "fetched").unlink()
    assert not kept.fetch(ACTION, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_other_actions_and_other_tenants_have_their_own(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"mine")
    Checkpoints(store, "mine").put(ACTION, path)
    assert not Checkpoints(store, "mine").fetch(OTHER, tmp_path / "fetched")
    assert not Checkpoints(store, "yours").fetch(ACTION, tmp_path / "fetched")
    with pytest.raises(SqueezeflowError, match="digest"):
        Checkpoints(store, "mine").put("../yours", path)


def test_too_large_a_state_is_refused_and_the_older_one_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, path = Checkpoints(store, "default"), tmp_path / "state"
    path.write_bytes(b"fits")
    kept.put(ACTION, path)
    monkeypatch.setattr(checkpoints, "MOST_BYTES", 10)
    path.write_bytes(b"does not fit")
    with pytest.raises(SqueezeflowError, match="12 bytes") as refusal:
        kept.put(ACTION, path)
    assert refusal.value.reason == "QUOTA_EXCEEDED"
    assert kept.fetch(ACTION, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"fits"


def test_a_sweep_removes_what_nobody_renewed_and_looks_at_a_few_only(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, path = Checkpoints(store, "default"), tmp_path / "state"
    path.write_bytes(b"left")
    actions = [digit * 64 for digit in "0123456789"]
    for action in actions:
        kept.put(action, path)
    Checkpoints(store, "other").put(actions[5], path)
    assert kept.sweep(actions[0]) == []
    old = time.time() - checkpoints.LEFTOVER.total_seconds() - 60
    for left in (tmp_path / "store" / "tenants").glob("*/checkpoints/*"):
        os.utime(left, (old, old))
    kept.put(actions[7], path)
    monkeypatch.setattr(checkpoints, "SWEPT", 4)
    assert kept.sweep(actions[4]) == [actions[5], actions[6], actions[8]]
    assert kept.sweep(actions[6]) == [actions[9]]
    assert store.list("tenants/other/") == [f"tenants/other/checkpoints/{actions[5]}"]
    assert len(store.list("tenants/default/")) == 6
