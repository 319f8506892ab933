"""What the gateway offers, as choices with friendly labels. Pure values; filled by `client`, shown by both tabs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.served_names import RAW_BASE, ServedName, parse_served_name
from preceptor_contracts.wire import DomainView

RAW_BASE_LABEL = "Raw base model"


class Choice(NamedTuple):
    """One line of a dropdown; Gradio takes the pair as it is."""

    label: str
    served: str


@dataclass(frozen=True)
class Catalogue:
    """Served names and domains, in the gateway's order."""

    served: tuple[str, ...] = ()
    domains: tuple[DomainView, ...] = ()

    def domain_of(self, served: str | None) -> DomainView | None:
        """Returns the domain that a served name belongs to; None for the raw base model and unknown names."""
        name = _parsed(served)
        return next((domain for domain in self.domains if name and domain.name == name.domain), None)

    def label(self, served: str) -> str:
        """Names a served name for people, e.g. `Allergy FAQ · promoted (allergy)`."""
        if served == RAW_BASE:
            return f"{RAW_BASE_LABEL} ({served})"
        name = _parsed(served)
        if name is None:
            return served
        domain = self.domain_of(served)
        title = domain.title if domain else name.domain
        if name.is_base:
            return f"{title} · base model ({served})"
        if name.adapter:
            return f"{title} · {name.adapter}"
        promoted = "promoted" if domain is None or domain.promoted else "nothing promoted yet"
        return f"{title} · {promoted} ({served})"

    def chat_choices(self) -> tuple[Choice, ...]:
        """Everything that can chat."""
        return tuple(Choice(self.label(served), served) for served in self.served)

    def mcq_choices(self) -> tuple[Choice, ...]:
        """The served names of the domains that have multiple choice."""
        return tuple(choice for choice in self.chat_choices() if self._has_mcq(choice.served))

    def pick(self, choices: tuple[Choice, ...], current: str | None) -> str | None:
        """Keeps the current choice where it still exists; else the first promoted domain, else the first choice."""
        names = [choice.served for choice in choices]
        if current in names:
            return current
        promoted = (domain.name for domain in self.domains if domain.promoted and domain.name in names)
        return next(promoted, names[0] if names else None)

    def _has_mcq(self, served: str) -> bool:
        domain = self.domain_of(served)
        return domain is not None and domain.has_mcq


def _parsed(served: str | None) -> ServedName | None:
    try:
        return parse_served_name(served) if served else None
    except InvalidInput:
        return None
