"""How a command reaches services: those that were named, those of a running `up`, or ones of its own for the call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from squeezeflow.cli.embedded.home import Endpoints, Home, home_of, running, take
from squeezeflow.cli.embedded.supervisor import Services
from squeezeflow.cli.output import Output
from squeezeflow.cli.settings import Settings
from squeezeflow.core.errors import SqueezeflowError

if TYPE_CHECKING:
    from squeezeflow.client import Client

ALL = frozenset({"orchestrator", "converter", "quantizer", "pruner", "inference"})


class Session:
    """Services that a command can call.

    Attributes:
        addresses: HOST:PORT by service name, as far as known.
        services: those that run for this call alone; None where they run anyway.
    """

    def __init__(self, addresses: Mapping[str, str], services: Services | None) -> None:
        self.addresses = addresses
        self.services = services

    @cached_property
    def client(self) -> Client:
        """A client; where services are being started, the orchestrator is waited for first."""
        # Imported while the services start.
        from squeezeflow.client import Client

        if self.services is not None:
            self.services.wait_serving({"orchestrator"})
        client = Client(
            self.addresses["orchestrator"],
            converter=self.addresses.get("converter", ""),
            inference=self.addresses.get("inference", ""),
        )
        if self.services is not None:
            # A call that waits for a service which will never come is ended.
            self.services.on_failure = client.close
        return client

    def wait_for(self, *names: str) -> None:
        """Waits until services that are being started take calls; returns at once where they run anyway."""
        if self.services is not None:
            self.services.wait_serving(names)

    def close(self) -> None:
        """Closes the client, if there is one."""
        if "client" in self.__dict__:
            self.client.close()


@contextlib.contextmanager
def open_session(settings: Settings, output: Output, needs: frozenset[str]) -> Iterator[Session]:
    """Opens a session on a server, or starts the needed services and stops them at the end.

    Services that are started are not waited for here: `Session.client` and `Session.wait_for` do that, so that a
    command can prepare meanwhile.

    Raises:
        SqueezeflowError: WORKER_UNAVAILABLE with the last log line of a service that died at its start.
    """
    home = home_of(settings.environ)
    known = named_server(settings, home)
    if known is None:
        held = take(home, on_wait=output.tell)
        if not isinstance(held, Endpoints):
            output.aside(f"starting {', '.join(sorted(needs))} for this call; logs in {home.logs}")
            with held, run_services(settings, output, home, needs) as services:
                yield from _open(services.addresses, services)
            return
        known = _addressed(settings, held.addresses)
    yield from _open(known, None)


def named_server(settings: Settings, home: Home) -> dict[str, str] | None:
    """Gives the addresses of the server that options or environment name; None where they name none."""
    if not settings.server:
        return None
    local = running(home)
    # A server on this machine that was named by hand has its other services beside it.
    beside = local.addresses if local is not None and local.addresses.get("orchestrator") == settings.server else {}
    return _addressed(settings, {**beside, "orchestrator": settings.server})


def run_services(
    settings: Settings,
    output: Output,
    home: Home,
    names: frozenset[str],
    *,
    store_url: str = "",
    port_plan: Mapping[str, int] | None = None,
) -> Services:
    """Gives services of this process over the state folder; the caller holds its lock."""
    return Services(
        home,
        names,
        environ=settings.environ,
        store_url=store_url or settings.environ.get("SQUEEZEFLOW_STORE", ""),
        port_plan=port_plan,
        tell=output.tell,
    )


def _addressed(settings: Settings, addresses: Mapping[str, str]) -> dict[str, str]:
    given = {"converter": settings.converter, "inference": settings.inference}
    return {**addresses, **{name: address for name, address in given.items() if address}}


def _open(addresses: Mapping[str, str], services: Services | None) -> Iterator[Session]:
    session = Session(addresses, services)
    try:
        yield session
    except (SqueezeflowError, ValueError) as error:
        # The call failed because the service behind it did: that one says why. (A closed channel is a ValueError.)
        if services is not None and services.failure is not None and error is not services.failure:
            raise services.failure from error
        raise
    finally:
        session.close()
