from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_trainer.prepare.cleaning import clean, clean_text, folded
from preceptor_trainer.prepare.privacy import PrivacyCheck, find_private, masked


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a\r\nb\rc  ", "a\nb\nc"),
        ("e\u0301te\u0301", "été"),
        ("\ufeffzero\u200bwidth\u00ad", "zerowidth"),
        ("10\u00a0mg\u202fa", "10 mg a"),
        ("bell\x07\x00", "bell"),
        ("trailing  \t\nspace", "trailing\nspace"),
        ("m² ½ ﬁ", "m² ½ ﬁ"),
        ("if a:\n    b  = 1", "if a:\n    b  = 1"),
        ("👩\u200d⚕️ \u0645\u06cc\u200c\u062e", "👩\u200d⚕️ \u0645\u06cc\u200c\u062e"),
        ("a\u2028b", "a\nb"),
    ],
)
def test_text_is_normalised_where_no_reader_could_tell(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean_text(clean_text(text)) == clean_text(text)


def test_all_texts_inside_a_row_are_normalised() -> None:
    assert clean({"a": [" x ", {"b": "y\r\n"}], "n": 1, "t": ("z ",)}) == {"a": ["x", {"b": "y"}], "n": 1, "t": ["z"]}


def test_case_white_space_and_a_last_full_stop_are_folded() -> None:
    assert folded("At  NINE.") == folded("at nine") != folded("at nine!")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+x@clinic.example.org now", "e-mail address"),
        ("call +49 (0)170 1234567 today", "phone number"),
        ("call 555-867-5309", "phone number"),
        ("call 020 7946 0958", "phone number"),
        ("card 4111 1111 1111 1111.", "payment card number"),
        ("IBAN GB82 WEST 1234 5698 7654 32", "IBAN"),
        ("SSN 123-45-6789", "US social security number"),
        ("NHS 943 476 5919", "NHS number"),
        ("Patient no. A-123456 came", "labelled id number"),
    ],
)
def test_personal_data_is_found_and_masked(text: str, kind: str) -> None:
    [(found, value)] = find_private(text)
    assert found == kind
    digits = [part for part in text.split() if any(character.isdigit() or character == "@" for character in part)]
    for shown in (value, masked(text)):
        assert not any(part.strip(".,") in shown for part in digits if len(part) > 3)


@pytest.mark.parametrize(
    "text",
    [
        "Call 112 or 911 at once.",
        "SELECT * FROM visits WHERE date >= '2024-01-31' AND cost > 1234.50",
        "In 2019 there were 12 345 678 people, 4111111111111112 of something.",
        "pH 7.35-7.45, 10-20 mg, 1/2 tablet, 3 x 500 mg",
        "email me @home",
        "The patient is 45.",
    ],
)
def test_ordinary_numbers_are_none(text: str) -> None:
    assert find_private(text) == []


def test_places_are_counted_by_kind_and_the_first_kept() -> None:
    check = PrivacyCheck()
    for line in range(9):
        check.see("a@b.de and c@d.de", f"line {line}")
    assert check.counts == {"e-mail address": 18}
    assert len(check.first) == 5
    assert check.first[0] == ("e-mail address", "line 0", "a…(6 characters)")
