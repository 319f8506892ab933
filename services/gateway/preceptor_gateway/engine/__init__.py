"""The only door to vLLM."""

from preceptor_gateway.engine.client import EngineClient, EngineReply
from preceptor_gateway.engine.pool import EnginePool, PooledEngine, Routing

__all__ = ["EngineClient", "EnginePool", "EngineReply", "PooledEngine", "Routing"]
