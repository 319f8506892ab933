"""HTTP shapes that gateway, UI and trainer share."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from preceptor_contracts.frozen import Frozen
from preceptor_contracts.mcq import McqItem, Scoring
from preceptor_contracts.messages import Message, Text
from preceptor_contracts.report import Share
from preceptor_contracts.served_names import AdapterName, DomainName


class Problem(Frozen):
    """OpenAI's error object; the OpenAI SDK raises its typed exceptions from it."""

    message: str
    type: str
    param: str | None = None
    code: str


class ProblemBody(Frozen):
    """Every error that the gateway answers."""

    error: Problem
    hint: str = ""
    request_id: str


class McqRequest(Frozen):
    """`POST /submit_mcq`, the SAT seed's request."""

    text: str = ""
    """Passage; may be empty."""
    question: Text
    choices: tuple[Text, ...]
    """With or without labels: `"A) ..."` or `"..."`."""
    domain: str | None = None
    """Asks the domain's promoted adapter, or its base model where none is promoted."""
    model: str | None = None
    """An exact served name, in place of `domain`."""


class McqAnswer(Frozen):
    """Answer to `POST /submit_mcq`."""

    answer: str
    """Label of the chosen option."""
    choice: str
    """The chosen option as the client wrote it."""
    probabilities: dict[str, Share]
    """By label; they add up to 1."""
    off_option_mass: Share
    """Probability that the base model or adapter would have answered something that is no option at all."""
    margin: Share
    """Best probability less the second best."""
    scoring: Scoring
    served: str
    adapter: str | None
    domain: str
    prompt_tokens: int
    cached_tokens: int | None = None
    """Prompt tokens that the engine had in its prefix cache; None where it does not say."""
    safety: tuple[str, ...] = ()
    """Messages of the safety rules that the question set off."""
    disclaimer: str = ""
    request_id: str


class GenerateRequest(Frozen):
    """`POST /generate`: one prompt, streamed back as server-sent events."""

    prompt: Text
    domain: str | None = None
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0


class RenderRequest(Frozen):
    """`POST /v1/domains/{name}/render`: a conversation or a multiple-choice item, not both."""

    messages: tuple[Message, ...] = ()
    """As a client would send them, without the domain's system message."""
    mcq: McqItem | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> RenderRequest:
        if bool(self.messages) == (self.mcq is not None):
            raise ValueError("send either messages or mcq")
        return self


class RenderedPrompt(Frozen):
    """Exactly what the engine gets."""

    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    """With the generation prompt."""


class DomainView(Frozen):
    """A domain as clients see it."""

    name: DomainName
    title: str
    description: str
    disclaimer: str
    examples: tuple[str, ...]
    has_mcq: bool
    scoring: Scoring | None
    promoted: str | None


class DomainList(Frozen):
    """`GET /v1/domains`."""

    data: tuple[DomainView, ...]


class AdapterState(StrEnum):
    """Where an adapter stands between disk and engine."""

    REGISTERED = "registered"
    LOADING = "loading"
    READY = "ready"
    """Loaded, and its canary passed."""
    FAILED = "failed"


class AdapterOnEngine(Frozen):
    """Where an adapter stands on one engine."""

    state: AdapterState
    reason: str = ""
    """Why it is not ready there; empty where it is, or where nobody asked."""


class AdapterView(Frozen):
    """An adapter as clients see it."""

    adapter: str
    domain: str
    served: str
    state: AdapterState
    """`ready` where at least one engine that is in routing has it ready; else what the engines agree on, or `loading`
    where one is loading it."""
    reason: str = ""
    """Why it is not ready on every engine; empty where it is, or where nobody asked."""
    engines: dict[str, AdapterOnEngine] = Field(default_factory=dict)
    """By the engine's short name."""
    promoted: bool = False
    pinned: bool = False
    """Wanted in the engine though not promoted."""
    created_at: datetime | None = None
    scoring: Scoring | None = None
    accuracy: Share | None = None
    """From the newest report."""
    report: str | None = None
    """Name of the newest report's file."""


class AdapterList(Frozen):
    """`GET /v1/adapters`."""

    data: tuple[AdapterView, ...]


class AdapterRequest(Frozen):
    """`POST /v1/adapters`: load a registered adapter."""

    adapter: AdapterName
    pin: bool = True
    """Load it again whenever an engine starts; false leaves a pin as it is."""


class PromoteRequest(Frozen):
    """`POST /v1/domains/{name}/promote`."""

    adapter: AdapterName
    report: Text | None = None
    """Name of the report that the promotion rests on, e.g. `<exam-sha>-<run-id>.json`."""
    force: bool = False
    """Promote without a report, or against it."""


class AliasView(Frozen):
    """What an alias points at after promote or rollback."""

    domain: DomainName
    promoted: str | None
    previous: str | None


class EngineView(Frozen):
    """One engine as `GET /health` tells."""

    engine: str
    """Its short name: host and port."""
    up: bool
    version: str = ""
    """Empty where it is down."""
    in_flight: int
    """Requests of this gateway that are open there."""
    adapters_ready: int


class Health(Frozen):
    """`GET /health`."""

    status: str
    """`ok`, or `degraded` where an engine is down or a promoted adapter is not ready on an engine that is up."""
    engine: str
    """What answers, e.g. `vLLM 0.32.0`; `down` where no engine does."""
    domains: int
    adapters_ready: int
    engines: tuple[EngineView, ...] = ()
