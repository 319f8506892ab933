"""The exam report: base against adapter, as served."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from preceptor_contracts.files import Sha256
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.messages import Text
from preceptor_contracts.served_names import DomainName

Share = Annotated[float, Field(ge=0, le=1)]


class Verdict(StrEnum):
    """What the paired test says."""

    BETTER = "better"
    NOT_BETTER = "not_better"
    TOO_FEW = "too_few"


class Side(Frozen):
    """One contestant's score."""

    served: Text
    correct: Annotated[int, Field(ge=0)]
    accuracy: Share
    ci95: tuple[Share, Share]
    """Wilson's interval."""


class Comparison(Frozen):
    """Both sides on the same questions."""

    n: Annotated[int, Field(ge=1)]
    base: Side
    adapter: Side
    difference: float
    """Adapter's accuracy less base's, in [-1, 1]."""
    mcnemar_p: Share
    """Exact two-sided McNemar test on the discordant pairs."""
    difference_ci95: tuple[float, float] | None = None
    """Paired bootstrap over questions; None in reports older than it."""


class CalibrationBin(Frozen):
    """One bar of the reliability plot."""

    low: Share
    high: Share
    n: Annotated[int, Field(ge=1)]
    """Answers whose probability lies in [low, high); the last bin holds 1 too. Empty bins are left out."""
    confidence: Share
    """Their mean probability."""
    accuracy: Share
    """Share of them that are right."""


class Calibration(Frozen):
    """How well a side's probabilities match its hits; multiple choice only."""

    served: Text
    ece: Share
    """Expected calibration error over 10 equal-width bins."""
    brier: Annotated[float, Field(ge=0, le=2)]
    """Multi-class Brier score."""
    bins: tuple[CalibrationBin, ...] = ()


class Opponent(Frozen):
    """A further served name that sat the same exam, beside the base."""

    side: Side
    difference: float
    """Its accuracy less the base's, in [-1, 1]."""
    difference_ci95: tuple[float, float]
    mcnemar_p: Share


class Flips(Frozen):
    """Questions on which adapter and base differ, by id, in the exam's order."""

    gained: tuple[str, ...]
    """Right with the adapter alone."""
    lost: tuple[str, ...]
    """Right without it alone."""


class SampleSize(Frozen):
    """What an exam of this size can tell."""

    detectable: Share
    """Smallest true difference that n questions would show in 4 of 5 exams, at the share of differing answers seen."""
    needed: Annotated[int, Field(ge=1)] | None = None
    """Questions that would show the difference seen, as often; None where there is no difference."""
    sentence: Text


class Guard(Comparison):
    """General questions, asked of both sides without the domain's prompt, so that forgetting shows."""

    guard_sha: Sha256
    """SHA-256 of the file of questions."""
    forgot: bool
    """The adapter is significantly worse than the base at questions that have nothing to do with the domain."""
    reason: Text


class Perplexity(Frozen):
    """How well a served name foretells a text; by a sliding window, each token scored once."""

    served: Text
    text: Text
    """Name of the file."""
    text_sha: Sha256
    tokens: Annotated[int, Field(ge=1)]
    """Tokens scored: all but the first, which has no context."""
    window: int
    stride: int
    per_token: Annotated[float, Field(ge=1)]
    """Perplexity a token; comparable only between served names with the same tokenizer."""
    bits_per_byte: Annotated[float, Field(ge=0)]
    """Of the text in UTF-8; comparable between any two."""


class Judging(Frozen):
    """Who compared free answers, and how sure the comparisons are."""

    judge: Text
    """Served name of the judge."""
    prompt_sha: Sha256
    """SHA-256 of what the judge is told."""
    comparisons: int
    """Pairs of answers, each asked about in both orders unless they are the same."""
    disagreed: int
    """Pairs where the two orders gave different winners; ties for that reason."""
    unreadable: int
    """Pairs about which the judge said nothing readable; ties for that reason."""


class Report(Comparison):
    """`report.json`."""

    schema_version: int = 1
    domain: DomainName
    run_id: Text
    exam_sha: Sha256
    verdict: Verdict
    reason: Text
    """The verdict as a sentence."""
    groups: dict[str, Comparison]
    topics: dict[str, Comparison]
    calibration: tuple[Calibration, ...]
    """Of each side, in the order base, adapter, others; multiple choice only."""
    seconds: float
    engine: str
    """What answered, as the gateway names it."""
    created_at: AwareDatetime
    others: tuple[Opponent, ...] = ()
    """Served names that sat the exam beside base and adapter."""
    flips: Flips | None = None
    sample: SampleSize | None = None
    guard: Guard | None = None
    """None where nobody asked the guard questions."""
    perplexity: tuple[Perplexity, ...] = ()
    judging: Judging | None = None
    """None where no question needs a judge."""
