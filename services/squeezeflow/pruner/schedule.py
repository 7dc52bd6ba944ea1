"""When to prune: the steps of a polynomial decay that ends exactly at its target, however few steps there are.

TFMOT prunes every 100 steps by default and only within the decay: a short fine-tune then never prunes, without a word,
and a decay whose last step is not a pruning step never reaches its target (FACTS §1.3).
"""

from __future__ import annotations

from dataclasses import dataclass

# Masks are chosen about this often while the sparsity grows: every time costs a sort of all kernels, and between two of
# them the weights that are left take over.
UPDATES = 50


@dataclass(frozen=True)
class Schedule:
    """Pruning happens at `begin`, `begin + frequency`, … `end`; training steps count from 1.

    Attributes:
        begin: step of the first mask, at the initial sparsity. 0: there is one step only, which prunes to the target.
        end: step of the last mask, at the target; the masks stay from there on.
        frequency: steps between two masks.
    """

    begin: int
    end: int
    frequency: int


def schedule(steps: int, ramp: float) -> Schedule:
    """Spreads the growth of the sparsity over the first `ramp` share of `steps` training steps."""
    if steps == 1:
        return Schedule(0, 1, 1)
    last = min(steps, max(2, round(ramp * steps)))
    frequency = max(1, (last - 1) // UPDATES)
    return Schedule(1, 1 + (last - 1) // frequency * frequency, frequency)
