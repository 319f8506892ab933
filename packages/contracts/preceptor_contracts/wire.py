"""HTTP shapes that gateway, UI and trainer share."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from preceptor_contracts.frozen import Frozen
from preceptor_contracts.mcq import McqItem, Scoring
from preceptor_contracts.messages import Message, Text
from preceptor_contracts.report import Share
from preceptor_contracts.served_names import AdapterName, DomainName


class Problem(Frozen):
    """OpenAI's error object; the OpenAI SDK raises its typed exceptions from it."""

    message: str
    """A sentence that names the wrong value."""
    type: str
    """OpenAI's word for the status, e.g. `invalid_request_error`."""
    param: str | None = None
    """The field that is wrong, where one is."""
    code: str
    """One word to program by; docs/gateway.md lists them."""


class ProblemBody(Frozen):
    """Every error that the gateway answers."""

    error: Problem
    """OpenAI's part."""
    hint: str = ""
    """The way out."""
    request_id: str
    """As in the header `x-request-id`; the log has it."""


class ServedNameCard(Frozen):
    """A served name, as OpenAI spells what can be asked."""

    id: str
    """What a request names in `model`."""
    object: Literal["model"] = "model"
    """OpenAI's word."""
    created: int = 0
    """Always 0; `GET /v1/adapters` knows more."""
    owned_by: Literal["preceptor"] = "preceptor"
    """Always the same."""


class ServedNameList(Frozen):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    """OpenAI's word."""
    data: tuple[ServedNameCard, ...]
    """All that can be asked now."""


class About(Frozen):
    """`GET /`."""

    name: str = "Preceptor gateway"
    """What this is."""
    domains: tuple[str, ...]
    """Their names."""
    docs: str = "/docs"
    """Where people read on."""
    health: str = "/health"
    """Where probes ask."""
    openai_base_url: str = "/v1"
    """What OpenAI's clients want as their base URL, behind this server's."""


class McqRequest(Frozen):
    """`POST /submit_mcq`, the SAT seed's request."""

    text: str = ""
    """Passage; may be empty."""
    question: Text
    """The question."""
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
    """How the options were scored."""
    served: str
    """The served name that answered."""
    adapter: str | None
    """The adapter that answered; null for the base model."""
    domain: str
    """The domain whose prompt was used."""
    prompt_tokens: int
    """Tokens that the engine was sent."""
    cached_tokens: int | None = None
    """Prompt tokens that the engine had in its prefix cache; null where it does not say."""
    safety: tuple[str, ...] = ()
    """Messages of the safety rules that the question set off."""
    disclaimer: str = ""
    """The domain's."""
    request_id: str
    """As in the header `x-request-id`."""


class GenerateRequest(Frozen):
    """`POST /generate`: one prompt, streamed back as server-sent events."""

    prompt: Text
    """What a user would ask."""
    domain: str | None = None
    """Asks the domain's promoted adapter, or its base model where none is promoted."""
    model: str | None = None
    """An exact served name, in place of `domain`."""
    max_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Longest answer; the domain's `max_answer_tokens` where it is left out."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 always takes the likeliest token."""


class RenderRequest(Frozen):
    """`POST /v1/domains/{name}/render`: a conversation or a multiple-choice item, not both."""

    messages: tuple[Message, ...] = ()
    """As a client would send them, without the domain's system message."""
    mcq: McqItem | None = None
    """A multiple-choice item, in place of `messages`."""

    @model_validator(mode="after")
    def _exactly_one(self) -> RenderRequest:
        if bool(self.messages) == (self.mcq is not None):
            raise ValueError("send either messages or mcq")
        return self


class RenderedPrompt(Frozen):
    """Exactly what the engine gets."""

    messages: tuple[Message, ...]
    """The domain's system message first."""
    token_ids: tuple[int, ...]
    """With the generation prompt."""


class DomainView(Frozen):
    """A domain as clients see it."""

    name: DomainName
    """Name of its folder."""
    title: str
    """For people."""
    description: str
    """What it answers."""
    disclaimer: str
    """To be shown beside answers; may be empty."""
    examples: tuple[str, ...]
    """Questions to try."""
    has_mcq: bool
    """It answers multiple choice."""
    scoring: Scoring | None
    """How options are scored; null without multiple choice."""
    promoted: str | None
    """The adapter that its alias points at; null for none."""


class DomainList(Frozen):
    """`GET /v1/domains`."""

    data: tuple[DomainView, ...]
    """By name."""


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
    """`ready` where its canary passed."""
    reason: str = ""
    """Why it is not ready there; empty where it is, or where nobody asked."""


class AdapterView(Frozen):
    """An adapter as clients see it."""

    adapter: str
    """Name of its folder."""
    domain: str
    """The domain that it was trained for."""
    served: str
    """The served name that asks it."""
    state: AdapterState
    """`ready` where at least one engine that is in routing has it ready; else what the engines agree on, or `loading`
    where one is loading it."""
    reason: str = ""
    """Why it is not ready on every engine; empty where it is, or where nobody asked."""
    engines: dict[str, AdapterOnEngine] = Field(default_factory=dict)
    """By the engine's short name."""
    promoted: bool = False
    """The domain's alias points at it."""
    pinned: bool = False
    """Wanted in the engine though not promoted."""
    created_at: datetime | None = None
    """When it was published."""
    scoring: Scoring | None = None
    """How its options are scored; null without multiple choice."""
    accuracy: Share | None = None
    """From the newest report."""
    report: str | None = None
    """Name of the newest report's file."""


class AdapterList(Frozen):
    """`GET /v1/adapters`."""

    data: tuple[AdapterView, ...]
    """By domain; the oldest version first."""


class AdapterRequest(Frozen):
    """`POST /v1/adapters`: load a registered adapter."""

    adapter: AdapterName
    """Name of its folder."""
    pin: bool = True
    """Load it again whenever an engine starts; false leaves a pin as it is."""


class PromoteRequest(Frozen):
    """`POST /v1/domains/{name}/promote`."""

    adapter: AdapterName
    """Name of its folder; it must be of this domain."""
    report: Text | None = None
    """Name of the report that the promotion rests on, e.g. `<exam-sha>-<run-id>.json`."""
    force: bool = False
    """Promote without a report, or against it."""


class AliasView(Frozen):
    """What an alias points at after promote or rollback."""

    domain: DomainName
    """The alias has the domain's name."""
    promoted: str | None
    """What it points at now; null for nothing."""
    previous: str | None
    """What a rollback would restore; null for nothing."""


class EngineView(Frozen):
    """One engine as `GET /health` tells."""

    engine: str
    """Its short name: host and port."""
    up: bool
    """It answers."""
    version: str = ""
    """Empty where it is down."""
    in_flight: int
    """Requests of this gateway that are open there."""
    adapters_ready: int
    """Adapters whose canary passed there."""
    makes_way: bool = False
    """It gets no requests: a training wants its GPU, or has it."""


class Health(Frozen):
    """`GET /health`."""

    status: str
    """`ok`, or `degraded` where an engine is down or a promoted adapter is not ready on an engine that is up."""
    engine: str
    """What answers, e.g. `vLLM 0.32.0`; `down` where no engine does."""
    domains: int
    """How many there are."""
    adapters_ready: int
    """Adapters that can be asked now."""
    engines: tuple[EngineView, ...] = ()
    """Each by itself."""
