"""`/v1/completions` and `/v1/embeddings`."""

from __future__ import annotations

from typing import Any

from preceptor_gateway.hot import HotRoute
from preceptor_gateway.relay import EngineCall
from preceptor_gateway.services import Services


def _prepare(services: Services, body: dict[str, Any]) -> EngineCall:
    return services.completions.prepare(body)


def _prepare_embeddings(services: Services, body: dict[str, Any]) -> EngineCall:
    return services.completions.prepare_embeddings(body)


hot_routes = [
    HotRoute("/v1/completions", _prepare),
    HotRoute("/v1/embeddings", _prepare_embeddings),
]
