"""`squeezeflow up`: all services on this machine, until it is told to stop."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from squeezeflow.cli import exits
from squeezeflow.cli.embedded.home import Endpoints, Home, home_of, publish, take, withdraw
from squeezeflow.cli.embedded.ports import port_plan
from squeezeflow.cli.embedded.supervisor import Services
from squeezeflow.cli.exits import Terminated
from squeezeflow.cli.output import Output
from squeezeflow.cli.session import ALL, run_services
from squeezeflow.cli.settings import Settings


def run(settings: Settings, output: Output, *, store_url: str, port_base: int | None) -> int:
    """Runs all services, says where they are, and stays."""
    home = home_of(settings.environ)
    held = take(home, on_wait=output.tell)
    if isinstance(held, Endpoints):
        output.tell(f"all services are running already (pid {held.pid})")
        _answer(output, held)
        return exits.DONE
    with (
        held,
        run_services(settings, output, home, ALL, store_url=store_url, port_plan=port_plan(port_base)) as services,
    ):
        output.tell(f"starting {len(services.names)} services, logs in {home.logs}")
        return stay(output, home, services, lambda: _answer(output, services.endpoints))


def stay(
    output: Output,
    home: Home,
    services: Services,
    answer: Callable[[], None],
    tend: Callable[[], None] = lambda: None,
) -> int:
    """Publishes where services are once all of them serve, and stays until SIGTERM (gives 0) or Ctrl-C (raises).

    Args:
        answer: called when all serve.
        tend: called every second from then on.
    """
    try:
        services.wait_serving(services.names)
        publish(home, services.endpoints)
        answer()
        output.tell("all services are SERVING; Ctrl-C stops them")
        pause = threading.Event()
        while not pause.wait(1.0):
            tend()
    except Terminated:
        output.tell("stopping")
    finally:
        withdraw(home)
    return exits.DONE


def _answer(output: Output, endpoints: Endpoints) -> None:
    output.document(json.dumps({**endpoints.addresses, "pid": endpoints.pid}, indent=2))
    output.show(*(f"{name:<13} {address}" for name, address in endpoints.addresses.items()))
