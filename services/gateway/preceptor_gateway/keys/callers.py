"""Who asks: what the hot path knows about a key."""

from __future__ import annotations

from dataclasses import dataclass

USE_SCOPE = "use"
ADMIN_SCOPE = "admin"
SCOPES = frozenset({USE_SCOPE, ADMIN_SCOPE})


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may do in a minute and at once; 0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0

    @property
    def none(self) -> bool:
        """Says whether nothing is limited."""
        return not (self.requests_per_minute or self.tokens_per_minute or self.concurrent_requests)


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Caller:
    """A known key, without the key."""

    key_id: str
    name: str
    scopes: frozenset[str]
    limits: Limits = NO_LIMITS
    unlimited: bool = True
    """Says the same as `limits.none`, read without a call on the hot path."""
