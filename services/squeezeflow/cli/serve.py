"""`squeezeflow serve`: a TFLite file behind the Open Inference Protocol, under a name."""

from __future__ import annotations

import json

from squeezeflow.cli import exits
from squeezeflow.cli.embedded.home import Endpoints, home_of, take
from squeezeflow.cli.output import Output, error_line
from squeezeflow.cli.session import ALL, Session, named_server, open_session, run_services
from squeezeflow.cli.settings import Settings
from squeezeflow.cli.targets import check_target, digest_of_target
from squeezeflow.cli.up import stay
from squeezeflow.core.errors import SqueezeflowError


def run(settings: Settings, output: Output, target: str, *, name: str, contract: str) -> int:
    """Loads a model into the inference service that runs; starts all services and stays where none does."""
    check_target(target)
    home = home_of(settings.environ)
    held = None if named_server(settings, home) is not None else take(home, on_wait=output.tell)
    if held is None or isinstance(held, Endpoints):
        with open_session(settings, output, ALL) as session:
            _load(session, output, target, name, contract)
        return exits.DONE
    with held, run_services(settings, output, home, ALL) as services:
        session = Session(services.addresses, services)
        try:
            session.wait_for("orchestrator", "inference")
            digest = _load(session, output, target, name, contract)
            return stay(
                output,
                home,
                services,
                answer=lambda: None,
                tend=lambda: _load_again(session, output, name, digest, contract),
            )
        finally:
            session.close()


def usage(address: str, name: str) -> list[str]:
    """Gives two ways to call a served model."""
    asked = json.dumps({"name": name})
    return [
        f"squeezeflow infer {name} --data F.npz",
        f"grpcurl -plaintext -d '{asked}' {address} inference.GRPCInferenceService/ModelMetadata",
    ]


def _load(session: Session, output: Output, target: str, name: str, contract: str) -> str:
    client = session.client
    digest = digest_of_target(client, target)
    client.load(name, digest, contract=contract)
    address = session.addresses["inference"]
    output.message(client.model_metadata(name))
    output.show(f"{name} ({digest}) is served at {address}", *usage(address, name))
    return digest


def _load_again(session: Session, output: Output, name: str, digest: str, contract: str) -> None:
    """Binds the name again after inference was started anew: bindings do not outlive the process."""
    if session.services is None or not session.services.serving("inference"):
        return
    try:
        if not session.client.model_ready(name):
            session.client.load(name, digest, contract=contract)
    except SqueezeflowError as error:
        output.tell(f"{name} is not served, trying again: {error_line(error)}")
