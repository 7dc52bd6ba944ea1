"""The orchestrator's own configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from squeezeflow.core.config import load as load_config
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.orchestrator.settings import Settings, load

BASE = {"SQUEEZEFLOW_STORE": "dir:store", "SQUEEZEFLOW_WORKDIR": "/scratch/dir"}


def settings(**environ: str) -> Settings:
    environ = {**BASE, **{f"SQUEEZEFLOW_{name}": value for name, value in environ.items()}}
    return load(load_config("orchestrator", environ), environ)


def test_without_variables_workers_are_at_their_ports_and_the_database_is_in_the_work_folder() -> None:
    found = settings()
    assert found.workers["converter"] == "127.0.0.1:7071"
    assert set(found.workers) == {"converter", "quantizer", "pruner", "inference"}
    assert found.database == Path("/scratch/dir/orchestrator.sqlite")


def test_variables_are_taken() -> None:
    found = settings(PRUNER="dns:///pruner:7073", DATABASE="sqlite:////data/jobs.sqlite", EXECUTOR_ID="orchestrator-0")
    assert found.workers["pruner"] == "dns:///pruner:7073"
    assert found.database == Path("/data/jobs.sqlite")
    assert found.executor == "orchestrator-0"


@pytest.mark.parametrize("url", ["postgresql://host/db", "jobs.sqlite", "sqlite:///"])
def test_another_database_is_refused_naming_the_variable(url: str) -> None:
    with pytest.raises(SqueezeflowError, match="SQUEEZEFLOW_DATABASE") as caught:
        settings(DATABASE=url)
    assert caught.value.reason == "INVALID_PARAMETER"
