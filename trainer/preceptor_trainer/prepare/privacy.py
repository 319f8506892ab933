"""Looks for what may identify a person. A warning, never a verdict: patterns miss much and hit some that is harmless.

Found values are masked at once; no report, message or log holds one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

_PLACES = 5


class PrivacyKind(NamedTuple):
    """What is looked for."""

    name: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool]
    """Tells whether a match is one: check digits, where there are any."""


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _is_phone(text: str) -> bool:
    # E.164 allows 15 digits; under 8 there are too many other numbers that look alike.
    return 8 <= len(_digits(text)) <= 15


def _is_card(text: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in _digits(text)]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """Check digits of ISO 13616."""
    packed = re.sub(r"\s", "", text).upper()
    if not 15 <= len(packed) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in packed[4:] + packed[:4])) % 97 == 1


def _is_nhs(text: str) -> bool:
    """Check digit of NHS numbers: modulo 11 over ten digits."""
    digits = [int(digit) for digit in _digits(text)]
    check = 11 - sum(digit * weight for digit, weight in zip(digits, range(10, 1, -1), strict=False)) % 11
    return len(digits) == 10 and check % 11 == digits[9] and len(set(digits)) > 1


KINDS = (
    PrivacyKind(
        "e-mail address", re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+"), lambda text: True
    ),
    PrivacyKind("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _is_iban),
    PrivacyKind("payment card number", re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d.,-]?\d)"), _is_card),
    PrivacyKind("US social security number", re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b"), bool),
    PrivacyKind("NHS number", re.compile(r"\b\d{3}[ -]\d{3}[ -]\d{4}\b"), _is_nhs),
    PrivacyKind(
        "phone number",
        re.compile(
            r"(?<![\w.])(?:\+\d{1,3}[ ./()-]{0,2}(?:\d[ ./()-]{0,2}){6,13}\d"
            r"|\(0?\d{2,4}\)[ -]?\d{3,4}[ -]?\d{3,5}|\d{3}[-.]\d{3}[-.]\d{4}|0\d{2,5}[ /-]\d{3,4}[ /-]?\d{3,5})(?!\w)"
        ),
        _is_phone,
    ),
    PrivacyKind(
        "labelled id number",
        re.compile(
            r"(?i)\b(?:patient|passport|insurance|medical record|mrn|ssn|id)[ -]?(?:no|nr|number|id|#)\.?[ :#]*"
            r"(?=[A-Z-]*\d)[A-Z0-9-]{5,20}\b"
        ),
        bool,
    ),
)
# Every kind needs one of these; most texts hold none, which saves seven searches.
_WORTH_A_LOOK = re.compile(r"@|\d[\d\s./()-]{5}|[A-Za-z-]\d{4}")


class Found(NamedTuple):
    """One place, the value masked."""

    kind: str
    place: str
    masked: str


def find_private(text: str) -> list[tuple[str, str]]:
    """Returns kind and masked value of all that may identify a person; each place counts once."""
    if not _WORTH_A_LOOK.search(text):
        return []
    found, taken = [], list[range]()
    for kind in KINDS:
        for match in kind.pattern.finditer(text):
            span = range(*match.span())
            if kind.holds(match[0]) and not any(span[0] < other.stop and other.start <= span[-1] for other in taken):
                taken.append(span)
                found.append((kind.name, _mask(match[0])))
    return found


def masked(text: str) -> str:
    """Returns a text with all that may identify a person masked, for reports."""
    if not _WORTH_A_LOOK.search(text):
        return text
    for kind in KINDS:
        found = {match[0] for match in kind.pattern.finditer(text) if kind.holds(match[0])}
        for value in sorted(found, key=len, reverse=True):
            text = text.replace(value, _mask(value))
    return text


def _mask(value: str) -> str:
    """One character and the length, which finds the place and tells nothing."""
    return f"{value[0]}…({len(value)} characters)"


class PrivacyCheck:
    """Collects what is found over all records."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: list[Found] = []

    def see(self, text: str, place: str) -> None:
        """Looks through one record's text."""
        for kind, value in find_private(text):
            self.counts[kind] = self.counts.get(kind, 0) + 1
            if self.counts[kind] <= _PLACES:
                self.first.append(Found(kind, place, value))
