"""Answers one multiple-choice item."""

from __future__ import annotations

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import parse
from preceptor_contracts.mcq import LabelledChoice, McqItem, Scoring, read_choices
from preceptor_contracts.prompts import require_mcq
from preceptor_contracts.wire import McqAnswer, McqRequest
from pydantic import TypeAdapter

from preceptor_gateway.adapters.service import AdapterService
from preceptor_gateway.domains.service import DomainService, Target
from preceptor_gateway.engine.client import EngineLostAdapter
from preceptor_gateway.mcq.scoring import Scores, score_letters, score_options
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import BadRequest

_ITEM = TypeAdapter(McqItem)


class McqService:
    """Renders, scores, and says what the numbers mean."""

    def __init__(self, domains: DomainService, adapters: AdapterService, metrics: Metrics) -> None:
        self._domains = domains
        self._adapters = adapters
        self._metrics = metrics

    async def answer(self, request: McqRequest, request_id: str) -> McqAnswer:
        """Answers an item with the scoring that the manifest, or for a base model the domain, says.

        Raises:
            PreceptorError: The item is wrong, or what it asks for cannot be served.
        """
        choices = read_choices(request.choices)
        item = _item(request, choices)
        target = self._domains.resolve(self._domains.served_name(domain=request.domain, served=request.model))
        if target.domain is None or target.prompt is None:
            raise BadRequest(
                f"{target.served!r} has no domain, so no multiple-choice layout.",
                code="no_mcq",
                param="model",
                hint="Ask '<domain>', '<domain>:base' or '<domain>:<adapter>'.",
            )
        scoring = self._scoring(target)
        self._metrics.answers.labels(target.domain.name, target.adapter or "base", "mcq").inc()
        try:
            scores = await self._score(target, item, scoring)
        except EngineLostAdapter:
            if target.adapter:
                self._adapters.lost(target.adapter, target.engine)
            raise
        rules = target.domain.triggered(f"{item.passage} {item.question}")
        if rules:
            self._metrics.safety.labels(target.domain.name).inc()
        return _answer(request_id, choices, scores, scoring, target, tuple(rule.message for rule in rules))

    def _scoring(self, target: Target) -> Scoring:
        assert target.domain is not None  # answer() has seen to it
        layout = require_mcq(target.domain)
        if target.adapter:
            return self._adapters.require_ready(target.adapter).mcq_scoring or layout.scoring
        return layout.scoring

    async def _score(self, target: Target, item: McqItem, scoring: Scoring) -> Scores:
        assert target.prompt is not None  # answer() has seen to it
        messages = target.prompt.mcq(item)
        if scoring is Scoring.OPTIONS:
            return await score_options(target.engine, target.engine_name, messages, item.options)
        ids = await self._label_ids(target, item.labels)
        return await score_letters(target.engine, target.engine_name, messages, ids, target.stop_token_ids)

    async def _label_ids(self, target: Target, labels: tuple[str, ...]) -> list[int]:
        """The tokens that labels are as the first of an answer: the manifest's, for a base model the engine's."""
        known = self._adapters.require_ready(target.adapter).label_token_ids if target.adapter else {}
        return [known[label] if label in known else await target.engine.first_token(label) for label in labels]


def _item(request: McqRequest, choices: tuple[LabelledChoice, ...]) -> McqItem:
    fields = {"passage": request.text.strip(), "question": request.question, "options": [one.text for one in choices]}
    try:
        return parse(_ITEM, fields, where="The item")
    except InvalidInput as error:
        raise BadRequest(error.message, code="invalid_field", param="choices") from error


def _answer(
    request_id: str,
    choices: tuple[LabelledChoice, ...],
    scores: Scores,
    scoring: Scoring,
    target: Target,
    safety: tuple[str, ...],
) -> McqAnswer:
    ranked = sorted(range(len(choices)), key=lambda index: -scores.probabilities[index])
    best = ranked[0]
    assert target.domain is not None  # McqService.answer has seen to it
    return McqAnswer(
        answer=choices[best].label,
        choice=choices[best].written,
        probabilities={choice.label: share for choice, share in zip(choices, scores.probabilities, strict=True)},
        off_option_mass=scores.off_option_mass,
        margin=scores.probabilities[best] - scores.probabilities[ranked[1]],
        scoring=scoring,
        served=target.served,
        adapter=target.adapter,
        domain=target.domain.name,
        prompt_tokens=scores.prompt_tokens,
        cached_tokens=scores.cached_tokens,
        safety=safety,
        disclaimer=target.domain.disclaimer,
        request_id=request_id,
    )
