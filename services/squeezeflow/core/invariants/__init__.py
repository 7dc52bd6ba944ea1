"""What is proved of every produced file, re-read from its bytes. Each check gives an `Invariant` with its numbers.

outputs    finite, alive, close: what the file computes, against its source on the same samples
clusters   distinct values of clustered tensors, found again in the final file
matching   which constants of a file are a model's kernels
sparsity   zeros of pruned tensors, found again in the final file
patterns   zeros in blocks, and m of every n, in the final kernels
integers   which operators and weights really are integers
weights    int4 beside int8 beside float: every weight as it was planned
origins    where in a graph a wrong output begins
verdict    refusal of a result whose invariants do not hold

The meanings were measured: looser ones mean nothing, tighter ones fail correct models.
"""

from squeezeflow.core.invariants.clusters import ClusterTarget, cluster_targets, clusters, distinct
from squeezeflow.core.invariants.integers import DYNAMIC_MINIMUM, dynamic_range, float_operators, integer
from squeezeflow.core.invariants.outputs import alive, close, finite
from squeezeflow.core.invariants.patterns import block_sparsity, crowded_groups, m_by_n_sparsity, zero_blocks
from squeezeflow.core.invariants.sparsity import SparsityTarget, needed_zeros, sparsity, sparsity_targets
from squeezeflow.core.invariants.verdict import require

__all__ = [
    "DYNAMIC_MINIMUM",
    "ClusterTarget",
    "SparsityTarget",
    "alive",
    "block_sparsity",
    "close",
    "cluster_targets",
    "clusters",
    "crowded_groups",
    "distinct",
    "dynamic_range",
    "finite",
    "float_operators",
    "integer",
    "m_by_n_sparsity",
    "needed_zeros",
    "require",
    "sparsity",
    "sparsity_targets",
    "zero_blocks",
]
