"""Served names as choices: labels, order and the default."""

from __future__ import annotations

import pytest
from preceptor_contracts.wire import DomainList
from preceptor_ui.catalogue import Catalogue

from tests.unit.ui.ui_fake_gateway import DOMAINS, SERVED

CATALOGUE = Catalogue(tuple(SERVED), DomainList.model_validate({"data": DOMAINS}).data)


@pytest.mark.parametrize(
    ("served", "label"),
    [
        ("allergy", "Allergy FAQ · promoted (allergy)"),
        ("allergy:base", "Allergy FAQ · base model (allergy:base)"),
        ("allergy:allergy-v1-1a2b3c4d", "Allergy FAQ · allergy-v1-1a2b3c4d"),
        ("sql", "SQL analyst · nothing promoted yet (sql)"),
        ("base", "Raw base model (base)"),
        ("unlisted:base", "unlisted · base model (unlisted:base)"),
        ("Not/Ours", "Not/Ours"),
    ],
)
def test_label(served: str, label: str) -> None:
    assert CATALOGUE.label(served) == label


def test_default_is_the_first_promoted_domain() -> None:
    assert CATALOGUE.pick(CATALOGUE.chat_choices(), None) == "allergy"


def test_default_without_promotion_is_the_first() -> None:
    catalogue = Catalogue(("sql", "sql:base"), CATALOGUE.domains)
    assert catalogue.pick(catalogue.chat_choices(), None) == "sql"


def test_choice_is_kept_while_it_exists() -> None:
    assert CATALOGUE.pick(CATALOGUE.chat_choices(), "sql:base") == "sql:base"
    assert CATALOGUE.pick(CATALOGUE.chat_choices(), "gone") == "allergy"


def test_empty_catalogue_has_no_default() -> None:
    assert Catalogue().pick((), "allergy") is None


def test_multiple_choice_offers_only_domains_that_have_it() -> None:
    served = [choice.served for choice in CATALOGUE.mcq_choices()]
    assert served == ["allergy", "allergy:base", "allergy:allergy-v1-1a2b3c4d"]
