"""Answers multiple-choice items: one for `/submit_mcq`, up to 256 for `/v1/mcq`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import NamedTuple

from preceptor_contracts.domains import Domain
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.frozen import parse
from preceptor_contracts.mcq import LabelledChoice, McqItem, Scoring, read_choices
from preceptor_contracts.prompts import require_mcq
from preceptor_contracts.served_names import RAW_BASE
from preceptor_contracts.wire import McqAnswer, McqRequest
from preceptor_contracts.wire_mcq import Debias, McqListAnswer, McqListRequest, McqResult
from pydantic import TypeAdapter

from preceptor_gateway.adapters.service import AdapterService
from preceptor_gateway.batches import all_or_none, exact_name, run_each
from preceptor_gateway.domains.prompts import DomainPrompt
from preceptor_gateway.domains.service import DomainService, Target
from preceptor_gateway.engine.client import EngineLostAdapter, EngineNotReached
from preceptor_gateway.mcq.answers import failure_of, result_of, usage_of_all
from preceptor_gateway.mcq.counting import counted
from preceptor_gateway.mcq.debiasing import average, rotations
from preceptor_gateway.mcq.explaining import Explainer
from preceptor_gateway.mcq.options import score_options
from preceptor_gateway.mcq.scoring import Scored, Scores, score_letters
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.problems import BadRequest
from preceptor_gateway.relay import Relay

_ITEM = TypeAdapter(McqItem)


class _McqTarget(NamedTuple):
    """A target that has multiple choice."""

    target: Target
    domain: Domain
    prompt: DomainPrompt
    scoring: Scoring


class McqService:
    """Renders, scores, and says what the numbers mean."""

    def __init__(
        self, domains: DomainService, adapters: AdapterService, relay: Relay, metrics: Metrics, at_a_time: int
    ) -> None:
        self._domains = domains
        self._adapters = adapters
        self._metrics = metrics
        self._at_a_time = at_a_time
        self._explainer = Explainer(relay)

    # --- /submit_mcq ---

    async def answer(self, request: McqRequest, request_id: str) -> McqAnswer:
        """Answers an item with the scoring that the manifest, or for a base model the domain, says.

        Raises:
            PreceptorError: The item is wrong, or what it asks for cannot be served.
        """
        choices = read_choices(request.choices)
        item = _item(request, choices)
        served = self._domains.served_name(domain=request.domain, served=request.model)
        asked = self._resolve(served, item)
        self._count(asked, 1)
        with counted("/submit_mcq", asked.target) as tally:
            scores = (await self._score(asked, item, Debias.NONE)).scores
            tally.prompt_tokens, tally.cached_tokens = scores.prompt_tokens, scores.cached_tokens or 0
        (safety,) = self._safety(asked, [item])
        best = scores.best
        return McqAnswer(
            answer=choices[best].label,
            choice=choices[best].written,
            probabilities={choice.label: share for choice, share in zip(choices, scores.probabilities, strict=True)},
            off_option_mass=scores.off_option_mass,
            margin=scores.margin,
            scoring=asked.scoring,
            served=asked.target.served,
            adapter=asked.target.adapter,
            domain=asked.domain.name,
            prompt_tokens=scores.prompt_tokens,
            cached_tokens=scores.cached_tokens,
            safety=safety,
            disclaimer=asked.domain.disclaimer,
            request_id=request_id,
        )

    # --- /v1/mcq ---

    async def answer_all(self, request: McqListRequest, request_id: str) -> McqListAnswer:
        """Answers every item; what fails on the engine's side is that item's error.

        Raises:
            PreceptorError: The request cannot be served, or every item failed in the same way.
        """
        served = self._domains.served_name(domain=request.domain, served=request.model)
        items = [asked.item for asked in request.items]
        first = self._resolve(served, items[0])
        if request.explain:
            _require_explanations(first.domain)
        self._count(first, len(items))
        safety = self._safety(first, items)
        order = _passages_together(items)
        exact = exact_name(first.target)
        jobs = [partial(self._score_one, exact, items[index], request.debias) for index in order]
        with counted("/v1/mcq", first.target) as tally:
            done = dict(zip(order, await run_each(jobs, self._width(first.scoring, request)), strict=True))
            results = tuple(
                result_of(index, asked, one, first.scoring, request.abstain_below, safety[index])
                if isinstance(one := done[index], Scored)
                else failure_of(index, asked, one)
                for index, asked in enumerate(request.items)
            )
            usage = usage_of_all(results)
            tally.prompt_tokens, tally.cached_tokens = usage.prompt_tokens, usage.cached_tokens or 0
        return McqListAnswer(
            results=results,
            usage=usage,
            served=served,
            adapter=first.target.adapter,
            domain=first.domain.name,
            debias=request.debias,
            disclaimer=first.domain.disclaimer,
            request_id=request_id,
        )

    async def explanation(
        self, request: McqListRequest, answer: McqListAnswer, note_tokens: Callable[[int | None], None]
    ) -> AsyncGenerator[str, None]:
        """Says why the best option of a request's only item is best, piece by piece.

        Args:
            request: The item.
            answer: What was answered.
            note_tokens: Told in the end how many tokens the explanation took, prompt included.

        Raises:
            PreceptorError: While iterating: the adapter is gone, or the engine fails.
        """
        item, options = request.items[0].item, request.items[0].options
        (result,) = answer.results
        assert isinstance(result, McqResult)  # where the only item fails, the request does
        asked = self._resolve(f"{answer.domain}:{answer.adapter or RAW_BASE}", item)
        labels = tuple(option.label for option in options)
        if any(rule.instead for rule in asked.domain.triggered(f"{item.passage} {item.question}")):
            # Nothing is generated that could speak against what the answer's `safety` says.
            return
        chosen = labels.index(result.best)
        pieces = self._explainer.pieces(asked.target, asked.domain, item, labels, chosen, note_tokens)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    # --- both ---

    def _resolve(self, served: str, item: McqItem) -> _McqTarget:
        target = self._domains.resolve(served, _prefix(item))
        if target.domain is None or target.prompt is None:
            raise BadRequest(
                f"{target.served!r} has no domain, so no multiple-choice layout.",
                code="no_mcq",
                param="model",
                hint="Ask '<domain>', '<domain>:base' or '<domain>:<adapter>'.",
            )
        layout = require_mcq(target.domain)
        trained = self._adapters.require_ready(target.adapter).mcq_scoring if target.adapter else None
        return _McqTarget(target, target.domain, target.prompt, trained or layout.scoring)

    def _count(self, asked: _McqTarget, items: int) -> None:
        self._metrics.answers.labels(asked.domain.name, asked.target.adapter or "base", "mcq").inc(items)

    def _safety(self, asked: _McqTarget, items: Sequence[McqItem]) -> list[tuple[str, ...]]:
        """Per item, the messages of the rules that it sets off."""
        found = [asked.domain.triggered(f"{item.passage} {item.question}") for item in items]
        if some := sum(bool(rules) for rules in found):
            self._metrics.safety.labels(asked.domain.name).inc(some)
        return [tuple(rule.message for rule in rules) for rules in found]

    def _width(self, scoring: Scoring, request: McqListRequest) -> int:
        """Items in the engine at a time: one of `options`, or one that is rotated, is several sequences there."""
        several = scoring is Scoring.OPTIONS or request.debias is Debias.CYCLIC
        most = max(len(asked.options) for asked in request.items) if several else 1
        return max(1, self._at_a_time // most)

    async def _score_one(self, served: str, item: McqItem, debias: Debias) -> Scored:
        # Resolved when its turn comes, so that the least loaded of several engines is that of now.
        return await self._score(self._resolve(served, item), item, debias)

    async def _score(self, asked: _McqTarget, item: McqItem, debias: Debias) -> Scored:
        """Scores an item; from the start on one other engine where the first broke off or has lost the adapter."""
        target = asked.target
        try:
            return await self._score_there(asked, item, debias)
        except EngineNotReached:
            other = self._domains.elsewhere(target, _prefix(item))
            if other is None:
                raise
        except EngineLostAdapter:
            if target.adapter is None:
                raise
            self._adapters.lost(target.adapter, target.engine)
            if not self._adapters.is_ready(target.adapter):
                raise
            other = self._domains.resolve(exact_name(target), _prefix(item))
        return await self._score_there(asked._replace(target=other), item, debias)

    async def _score_there(self, asked: _McqTarget, item: McqItem, debias: Debias) -> Scored:
        target = asked.target
        if asked.scoring is Scoring.OPTIONS:
            # No layout shows the options in this scoring, so their order cannot matter: nothing to rotate.
            messages = asked.prompt.mcq(item)
            scores = await score_options(target.engine, target.engine_name, messages, item.options)
            return Scored(scores, 0.0 if debias is Debias.CYCLIC else None)
        if debias is Debias.NONE:
            return Scored(await self._by_letters(asked, item))
        return average(await all_or_none([self._by_letters(asked, turned) for turned in rotations(item)]))

    async def _by_letters(self, asked: _McqTarget, item: McqItem) -> Scores:
        target = asked.target
        ids = await self._label_ids(target, item.labels)
        messages = asked.prompt.mcq(item)
        return await score_letters(target.engine, target.engine_name, messages, ids, target.stop_token_ids)

    async def _label_ids(self, target: Target, labels: tuple[str, ...]) -> list[int]:
        """The tokens that labels are as the first of an answer: the manifest's, for a base model the engine's."""
        known = self._adapters.require_ready(target.adapter).label_token_ids if target.adapter else {}
        return [known[label] if label in known else await target.engine.first_token(label) for label in labels]


def _prefix(item: McqItem) -> bytes:
    """What items have in common, a passage; on one engine its blocks are computed once."""
    return item.passage.encode(errors="replace")


def _item(request: McqRequest, choices: tuple[LabelledChoice, ...]) -> McqItem:
    fields = {"passage": request.text.strip(), "question": request.question, "options": [one.text for one in choices]}
    try:
        return parse(_ITEM, fields, where="The item")
    except InvalidInput as error:
        raise BadRequest(error.message, code="invalid_field", param="choices") from error


def _passages_together(items: Sequence[McqItem]) -> list[int]:
    """Indexes so ordered that items on one passage follow each other, else as they came.

    They are asked side by side, without a first one alone to warm the cache: vLLM registers a prompt's blocks when it
    schedules the request, so the next one finds them even in the same step (`KVCacheManager.allocate_slots`).
    """
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        first.setdefault(item.passage, index)
    return sorted(range(len(items)), key=lambda index: first[items[index].passage])


def _require_explanations(domain: Domain) -> None:
    if require_mcq(domain).explain is None:
        raise BadRequest(
            f"The domain {domain.name!r} explains no answers.",
            code="no_explanations",
            param="explain",
            hint="Ask without `explain`, or set `mcq.explain` in its domain.yaml.",
        )
