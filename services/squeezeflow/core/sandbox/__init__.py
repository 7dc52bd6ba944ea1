"""Runs each step in a process of its own, forked from a server that has the engine imported and nothing run.

A child costs a fork instead of an import; whatever happens in it (abort, hang, all memory eaten, state left behind)
ends with it and reaches the caller as a typed error. `Sandbox` is the parent's side; `forkserver` and `child` are what
runs on the other side of the fork.
"""

from __future__ import annotations

from squeezeflow.core.sandbox.sandbox import ChildResult, Limits, Sandbox
from squeezeflow.core.sandbox.session import Session

__all__ = ["ChildResult", "Limits", "Sandbox", "Session"]
