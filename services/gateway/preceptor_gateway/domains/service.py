"""The domains of this installation, and what a served name means."""

from __future__ import annotations

from typing import NamedTuple

from preceptor_contracts.domains import Domain
from preceptor_contracts.messages import Message
from preceptor_contracts.served_names import RAW_BASE, adapter_domain, parse_served_name
from preceptor_contracts.wire import DomainView, PromoteRequest, RenderedPrompt, RenderRequest
from preceptor_contracts.wire_aliases import MoveKind, SwitchAnswer, SwitchRequest

from preceptor_gateway.adapters.service import AdapterService
from preceptor_gateway.domains.prompts import DomainPrompt
from preceptor_gateway.engine import EngineClient, EnginePool
from preceptor_gateway.problems import BadRequest, Conflict, NotFound


class Target(NamedTuple):
    """What a served name resolves to."""

    served: str
    engine_name: str
    """What the engine calls it."""
    domain: Domain | None
    """None for the raw base model."""
    prompt: DomainPrompt | None
    adapter: str | None
    stop_token_ids: tuple[int, ...]
    """Sent with the request, for vLLM ignores an adapter's own."""
    engine: EngineClient
    """Whom to ask."""


class DomainService:
    """Read once at start; a changed domain needs a restart, since adapters were trained on its prompt."""

    def __init__(self, domains: dict[str, Domain], adapters: AdapterService, engines: EnginePool, default: str) -> None:
        self.domains = domains
        self._prompts = {name: DomainPrompt(domain) for name, domain in self.domains.items()}
        self._adapters = adapters
        self._engines = engines
        self._default = default or (next(iter(self.domains)) if len(self.domains) == 1 else "")

    def require(self, name: str) -> Domain:
        """Returns a domain by name."""
        if name not in self.domains:
            known = ", ".join(sorted(self.domains)) or "none"
            raise NotFound(
                f"There is no domain {name!r}.", code="unknown_domain", param="domain", hint=f"Known domains: {known}."
            )
        return self.domains[name]

    def served_name(self, *, domain: str | None, served: str | None) -> str:
        """Picks the served name of a request that may name a domain, an exact served name, or neither."""
        if served:
            return served
        name = domain or self._default
        if not name:
            raise BadRequest(
                "The request names no domain.", code="domain_missing", param="domain", hint=self._known_hint()
            )
        self.require(name)
        return name if self._adapters.promoted(name) else f"{name}:{RAW_BASE}"

    def _known_hint(self) -> str:
        return f'Send "domain"; known: {", ".join(sorted(self.domains))}. Or set GATEWAY_DEFAULT_DOMAIN.'

    def resolve(self, served: str, affinity: bytes = b"") -> Target:
        """Finds what to ask, and whom, for a served name.

        Args:
            served: What the client asked for.
            affinity: Text that requests on one prefix have in common; they go to one engine while its load allows.

        Raises:
            InvalidInput, NotFound: No such served name.
            Unavailable: The adapter exists and is not ready, or no engine answers.
        """
        name = parse_served_name(served)
        if name.domain is None:
            return Target(served, RAW_BASE, None, None, None, (), self._engines.pick(None, affinity))
        if name.domain not in self.domains:
            raise NotFound(
                f"{served!r} is not a served name: there is no domain {name.domain!r}.",
                code="unknown_served_name",
                param="model",
                hint=f"Served names: {', '.join(self.served_names())}.",
            )
        domain, prompt = self.domains[name.domain], self._prompts[name.domain]
        if name.is_base:
            return Target(served, RAW_BASE, domain, prompt, None, (), self._engines.pick(None, affinity))
        adapter = name.adapter or self._adapters.promoted(name.domain)
        if adapter is None:
            raise NotFound(
                f"{served!r} has no promoted adapter yet.",
                code="nothing_promoted",
                param="model",
                hint=f"Ask {served + ':' + RAW_BASE!r}, or run `preceptor-trainer run {served}`.",
            )
        manifest = self._adapters.require_ready(adapter)
        engine = self._engines.pick(adapter, affinity)
        return Target(served, adapter, domain, prompt, adapter, manifest.stop_token_ids, engine)

    def elsewhere(self, target: Target, affinity: bytes = b"") -> Target | None:
        """The same target on another engine, after its own gave no answer; that one is taken out of routing.

        Args:
            target: Whose engine broke the connection off before any byte came.
            affinity: As in `resolve`.

        Returns:
            None where no other engine can answer.
        """
        engine = self._engines.elsewhere(target.engine, target.adapter, affinity)
        return target._replace(engine=engine) if engine else None

    def served_names(self) -> list[str]:
        """All that `GET /v1/models` lists now."""
        names = []
        for name in self.domains:
            promoted = self._adapters.promoted(name)
            if promoted and self._adapters.is_ready(promoted):
                names.append(name)
            names.append(f"{name}:{RAW_BASE}")
            names += [f"{name}:{adapter}" for adapter in self._adapters.ready(name)]
        return [*names, RAW_BASE]

    def view(self, name: str) -> DomainView:
        """A domain as clients see it."""
        domain = self.require(name)
        return DomainView(
            name=domain.name,
            title=domain.title,
            description=domain.description,
            disclaimer=domain.disclaimer,
            examples=domain.examples,
            has_mcq=domain.mcq is not None,
            scoring=domain.mcq.scoring if domain.mcq else None,
            promoted=self._adapters.promoted(name),
        )

    async def switch(self, request: SwitchRequest) -> SwitchAnswer:
        """Moves an alias as the seeds did: by name alone, without a report.

        Raises:
            BadRequest: `base` without a domain, where there are several.
            NotFound, Conflict: There is no such adapter or domain, or it is another domain's.
        """
        said, _, version = request.adapter.rpartition(":")
        domain = said or (adapter_domain(version) if version != RAW_BASE else None) or request.domain or self._default
        if not domain:
            raise BadRequest(
                "The request names no domain.", code="domain_missing", param="domain", hint=self._known_hint()
            )
        self.require(domain)
        if request.domain not in (None, domain):
            raise Conflict(f"{request.adapter!r} is of domain {domain!r}, not {request.domain!r}.", code="wrong_domain")
        if version in self.domains:
            raise BadRequest(
                f"{version!r} is a domain, not an adapter.",
                code="invalid_field",
                param="adapter",
                hint="GET /v1/adapters lists the adapters.",
            )
        before = self._adapters.promoted(domain)
        if version == RAW_BASE:
            alias = self._adapters.point_at_nothing(domain)
        else:
            self._adapters.require_known(version)
            wish = PromoteRequest(adapter=version, force=True)
            alias = await self._adapters.promote(domain, wish, MoveKind.SWITCH)
        return SwitchAnswer(domain=domain, adapter=alias.promoted or RAW_BASE, previous=before or RAW_BASE)

    async def render(self, name: str, request: RenderRequest) -> RenderedPrompt:
        """Exactly what the engine gets, token ids included; the trainer's parity check."""
        self.require(name)
        prompt = self._prompts[name]
        if request.mcq is not None:
            messages = prompt.mcq(request.mcq)
        else:
            extra = [message.content for message in request.messages if message.role == "system"]
            turns = [message.wire() for message in request.messages if message.role != "system"]
            messages = [prompt.system(extra), *turns]
        ids = await self._engines.pick(None).tokenize(messages)
        return RenderedPrompt(messages=tuple(Message.model_validate(one) for one in messages), token_ids=ids)
