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


class Calibration(Frozen):
    """How well a side's probabilities match its hits; multiple choice only."""

    served: Text
    ece: Share
    """Expected calibration error over 10 equal-width bins."""
    brier: Annotated[float, Field(ge=0, le=2)]
    """Multi-class Brier score."""


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
    seconds: float
    engine: str
    """What answered, as the gateway names it."""
    created_at: AwareDatetime
