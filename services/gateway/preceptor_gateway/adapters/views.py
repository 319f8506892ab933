"""What engines say of one adapter, told as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from preceptor_contracts.wire import AdapterOnEngine, AdapterState


class Together(NamedTuple):
    """One state for all engines, and why it is not `ready` on every one."""

    state: AdapterState
    reason: str


def together(engines: Mapping[str, AdapterOnEngine], asked: Sequence[str]) -> Together:
    """Sums up where an adapter stands.

    Args:
        engines: Its state on each engine, by name.
        asked: Names of the engines in routing; one that is out does not say what an adapter is.
    """
    told = {name: one for name, one in engines.items() if name in asked} or dict(engines)
    states = {one.state for one in told.values()}
    for state in (AdapterState.READY, AdapterState.LOADING):
        if state in states:
            return Together(state, _reasons(engines))
    if states == {AdapterState.FAILED}:
        return Together(AdapterState.FAILED, _reasons(told))
    return Together(AdapterState.REGISTERED, _reasons(engines))


def _reasons(engines: Mapping[str, AdapterOnEngine]) -> str:
    """Each reason once; with the engine's name where not all say the same."""
    found = {name: one.reason for name, one in engines.items() if one.reason}
    if len(found) == len(engines) and len(set(found.values())) == 1:
        return next(iter(found.values()))
    return " ".join(f"{name}: {reason}" for name, reason in found.items())
