"""Spells scores and failures as `/v1/mcq` answers them, in the client's labels."""

from __future__ import annotations

from collections.abc import Sequence

from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.mcq import Scoring
from preceptor_contracts.wire_mcq import McqAsked, McqFailure, McqResult, McqUsage, OptionDetail

from preceptor_gateway.mcq.scoring import Scored
from preceptor_gateway.problems import body_of


def result_of(
    index: int, asked: McqAsked, scored: Scored, scoring: Scoring, abstain_below: float | None, safety: tuple[str, ...]
) -> McqResult:
    """An item's answer."""
    scores = scored.scores
    best = asked.options[scores.best]
    abstained = abstain_below is not None and scores.probabilities[scores.best] < abstain_below
    details = tuple(
        OptionDetail(label=option.label, probability=share, **score._asdict())
        for option, share, score in zip(asked.options, scores.probabilities, scores.options, strict=True)
    )
    return McqResult(
        index=index,
        id=asked.id,
        answer=None if abstained else best.label,
        abstained=abstained,
        best=best.label,
        choice=None if abstained else best.written,
        probabilities={detail.label: detail.probability for detail in details},
        off_option_mass=scores.off_option_mass,
        margin=scores.margin,
        scoring=scoring,
        flip_rate=scored.flip_rate,
        options=details,
        prompt_tokens=scores.prompt_tokens,
        cached_tokens=scores.cached_tokens,
        safety=safety,
    )


def failure_of(index: int, asked: McqAsked, error: PreceptorError) -> McqFailure:
    """An item that has no answer."""
    told = body_of(error, "")
    return McqFailure(index=index, id=asked.id, error=told.error, hint=told.hint)


def usage_of_all(results: Sequence[McqResult | McqFailure]) -> McqUsage:
    """Totals over the items that were answered."""
    answered = [result for result in results if isinstance(result, McqResult)]
    cached = [result.cached_tokens for result in answered if result.cached_tokens is not None]
    return McqUsage(
        prompt_tokens=sum(result.prompt_tokens for result in answered),
        cached_tokens=sum(cached) if cached else None,
    )
