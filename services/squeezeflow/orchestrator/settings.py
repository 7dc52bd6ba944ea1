"""The orchestrator's own configuration, beside what every service has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from squeezeflow.core.config import ENV_PREFIX, PORTS, WORKERS, Environment, ServiceConfig

_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Settings:
    """What the orchestrator needs to know.

    Attributes:
        workers: gRPC target by worker: `converter` → `dns:///converter:7071`.
        database: the SQLite file of the engine.
        executor: name under which unfinished jobs are taken up again; the same at every start.
        worker_gone_seconds: how long a worker that is not there is called again before a step fails. CreateJob, which
            a person waits for, gives up after 30 s of it.
    """

    workers: Mapping[str, str]
    database: Path
    executor: str
    worker_gone_seconds: float


def load(config: ServiceConfig, environ: Mapping[str, str]) -> Settings:
    """Reads the settings; INVALID_PARAMETER names every variable that is wrong."""
    env = Environment(environ)
    settings = Settings(
        workers={name: env.text(name.upper()) or f"127.0.0.1:{PORTS[name]}" for name in WORKERS},
        database=_database(env, config.workdir),
        executor=env.text("EXECUTOR_ID") or "orchestrator",
        worker_gone_seconds=env.number("WORKER_GONE_SECONDS", 120, low=0, high=86400, kind=float),
    )
    env.check()
    return settings


def _database(env: Environment, workdir: Path) -> Path:
    url = env.text("DATABASE")
    if not url:
        return workdir / "orchestrator.sqlite"
    path = url.removeprefix(_SQLITE)
    if path == url or not path:
        env.problems.append(f"{ENV_PREFIX}DATABASE={url} is not {_SQLITE}PATH")
    return Path(path)
