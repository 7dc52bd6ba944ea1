"""No result leaves a service whose invariants do not hold."""

from __future__ import annotations

from collections.abc import Iterable

from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.v1 import step_pb2

# In this order: a NaN is also far from its source, and the NaN is the news.
REASONS = {"finite": "NON_FINITE_OUTPUT", "close": "OUTPUT_MISMATCH"}
ADVICE = {
    "NON_FINITE_OUTPUT": "look for overflow in the model, or use another technique",
    "OUTPUT_MISMATCH": "use another technique",
    "INVARIANT_BROKEN": "use another technique or milder parameters",
}


def require(invariants: Iterable[step_pb2.Invariant]) -> tuple[step_pb2.Invariant, ...]:
    """Gives the invariants back when all hold.

    Errors: NON_FINITE_OUTPUT, OUTPUT_MISMATCH, INVARIANT_BROKEN by the first in that order, with the detail of every
    invariant that does not hold in the metadata under its name.
    """
    checked = tuple(invariants)
    failed = {invariant.name: invariant.detail for invariant in checked if not invariant.passed}
    if not failed:
        return checked
    name = next((name for name in REASONS if name in failed), next(iter(failed)))
    reason = REASONS.get(name, "INVARIANT_BROKEN")
    advice = ADVICE[reason]
    if "dB, least" in failed[name]:
        # Float modes have a fixed tolerance: this changes nothing for them.
        advice += ", or lower min_sqnr_db to accept it"
    raise SqueezeflowError(reason, f"{name} does not hold, {failed[name]}: {advice}", metadata=failed)
