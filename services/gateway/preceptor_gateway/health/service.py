"""What each engine answers at this moment, asked briefly: a probe must not wait for the slowest."""

from __future__ import annotations

import asyncio

from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.wire import EngineView

from preceptor_gateway.engine import EnginePool, PooledEngine, Routing
from preceptor_gateway.problems import Unavailable

LIMIT_S = 2.0
"""Longest wait for an engine's version, in seconds."""


async def look_at_engines(pool: EnginePool) -> tuple[EngineView, ...]:
    """Asks every engine that is not known to be away, all at once."""
    return tuple(await asyncio.gather(*(_look_at(pool, one) for one in pool.engines)))


async def _look_at(pool: EnginePool, one: PooledEngine) -> EngineView:
    version = "" if one.routing is Routing.OUT else await _version(pool, one)
    return EngineView(
        engine=one.name,
        up=bool(version),
        version=version,
        in_flight=one.client.in_flight,
        adapters_ready=0 if one.is_out else len(one.ready),
        makes_way=one.makes_way,
    )


async def _version(pool: EnginePool, one: PooledEngine) -> str:
    try:
        return f"vLLM {await asyncio.wait_for(one.client.version(), LIMIT_S)}"
    except Unavailable as error:
        if error.code == "engine_down":
            pool.failed(one.client)
        return ""
    except (PreceptorError, TimeoutError):
        return ""
