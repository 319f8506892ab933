"""HTTP shapes of aliases: their history, and the seeds' way to move one."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from preceptor_contracts.frozen import Frozen
from preceptor_contracts.messages import Text
from preceptor_contracts.served_names import DomainName


class MoveKind(StrEnum):
    """What moved an alias."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    SWITCH = "switch"


class AliasMove(Frozen):
    """One entry of an alias's history."""

    at: datetime
    """When."""
    kind: MoveKind
    """What moved it."""
    adapter: str | None
    """What the alias points at since then; null for nothing, so that the domain is answered by its base model."""
    report: str | None = None
    """File name of the report that a promotion rests on."""


class AliasHistory(Frozen):
    """`GET /v1/domains/{name}/history`."""

    domain: DomainName
    """The alias has the domain's name."""
    data: tuple[AliasMove, ...]
    """Newest first."""


class SwitchRequest(Frozen):
    """`POST /switch-adapter`, the seeds' way to choose what answers."""

    adapter: Text
    """An adapter, its served name, `base`, or `<domain>:base`."""
    domain: str | None = None
    """Only needed with `base`, where there are several domains."""


class SwitchAnswer(Frozen):
    """Answer to `POST /switch-adapter`."""

    status: str = "ok"
    """Always `ok`, as the seeds have it."""
    domain: DomainName
    """The domain that is answered differently now."""
    adapter: str
    """What answers for the domain now: an adapter, or `base`."""
    previous: str
    """What answered before."""
