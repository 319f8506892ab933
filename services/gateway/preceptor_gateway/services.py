"""Everything a request may need, constructed once in the lifespan and passed explicitly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

if TYPE_CHECKING:
    from preceptor_gateway.adapters.service import AdapterService
    from preceptor_gateway.chat.service import ChatService
    from preceptor_gateway.completions.service import CompletionService
    from preceptor_gateway.domains.service import DomainService
    from preceptor_gateway.engine import EnginePool
    from preceptor_gateway.generate.service import GenerateService
    from preceptor_gateway.keys.service import KeyService
    from preceptor_gateway.limits.limiter import Limiter
    from preceptor_gateway.mcq.service import McqService
    from preceptor_gateway.metrics import Metrics
    from preceptor_gateway.relay import Relay
    from preceptor_gateway.settings import GatewaySettings


@dataclass(frozen=True)
class Services:
    """The gateway's parts."""

    settings: GatewaySettings
    keys: KeyService
    limiter: Limiter
    metrics: Metrics
    engines: EnginePool
    adapters: AdapterService
    domains: DomainService
    relay: Relay
    chat: ChatService
    completions: CompletionService
    mcq: McqService
    generate: GenerateService


async def get_services(request: Request) -> Services:
    """The parts of the application that answers this request."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]
