"""What every worker is made of: a store, a sandbox with its engine imported, a step runner, `Steps`, a server."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from squeezeflow.core.config import ServiceConfig
from squeezeflow.core.engine import Engine
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.core.sandbox import Sandbox
from squeezeflow.core.store import open_store
from squeezeflow.core.toolchain import toolchain
from squeezeflow.rpc.server import RECEIVE_LIMIT, Mount, configure_logging, serve
from squeezeflow.rpc.steps import StepRunner
from squeezeflow.rpc.steps_service import steps_mount


@dataclass(frozen=True)
class Worker:
    """The parts that a service's own servicers are built from."""

    config: ServiceConfig
    sandbox: Sandbox
    runner: StepRunner


def run_worker(
    load: Callable[[], ServiceConfig],
    engine: Engine,
    mounts: Callable[[Worker], Sequence[Mount]],
    *,
    foreign: Collection[str] = (),
    receive_limit: int = RECEIVE_LIMIT,
) -> int:
    """Builds and serves a worker until it is told to stop; gives the exit code of its process."""
    try:
        config = load()
        configure_logging(config.service, config.log_level)
        asyncio.run(_serve(config, engine, mounts, foreign, receive_limit))
    except SqueezeflowError as error:
        print(error, file=sys.stderr)
        return 2 if error.reason == "INVALID_PARAMETER" else 1
    return 0


async def _serve(
    config: ServiceConfig,
    engine: Engine,
    mounts: Callable[[Worker], Sequence[Mount]],
    foreign: Collection[str],
    receive_limit: int,
) -> None:
    store = open_store(config.store_url, access_key=config.store_access_key, secret_key=config.store_secret_key)
    env = {"SQUEEZEFLOW_STEP_THREADS": str(config.step_threads), **engine.env}
    sandbox = Sandbox(preload=engine.preload, warm=engine.warm, env=env, workdir=config.workdir)
    runner = StepRunner(config, store, sandbox, toolchain(*engine.packages))
    worker = Worker(config, sandbox, runner)
    try:
        await serve(
            config,
            [*mounts(worker), steps_mount(runner)],
            foreign=foreign,
            receive_limit=receive_limit,
            bound=runner.bound,
            ready=sandbox.start(),
            close=[runner.close],
        )
    finally:
        await asyncio.to_thread(shutil.rmtree, config.workdir, ignore_errors=True)
