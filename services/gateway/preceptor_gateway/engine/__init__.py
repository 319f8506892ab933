"""The only door to vLLM."""

from preceptor_gateway.engine.client import EngineClient, EngineReply

__all__ = ["EngineClient", "EngineReply"]
