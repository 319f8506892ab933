from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_contracts.errors import InvalidInput, PrerequisiteError
from preceptor_trainer.settings import load_settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no .env there


@pytest.mark.parametrize("url", ["http://anna:s3cret@host/v1", "https://host/v1?key=s3cret"])
def test_a_key_in_the_url_is_refused_without_being_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_GENERATOR_URL", url)
    with pytest.raises(InvalidInput, match="belongs in TRAINER_GENERATOR_API_KEY") as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("key", ["s3cret one", "s3cr\u00e9t", "s3cret\nX-More: 1"])
def test_a_key_that_fits_no_header_is_refused_without_being_told(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_GENERATOR_API_KEY", key)
    with pytest.raises(InvalidInput, match="generator_api_key") as caught:
        load_settings()
    assert "s3cr" not in str(caught.value)


def test_white_space_around_a_key_falls_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_GENERATOR_API_KEY", " s3cret\n")
    key = load_settings().generator_api_key
    assert key is not None
    assert key.get_secret_value() == "s3cret"


@pytest.mark.parametrize("name", ["TRAINER_GENERATOR_URL", "TRAINER_GENERATOR_NAME"])
def test_what_is_not_set_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_GENERATOR_URL", "http://127.0.0.1:8000/v1")
    monkeypatch.setenv("TRAINER_GENERATOR_NAME", "base")
    assert load_settings().generator()[1] == "base"
    monkeypatch.delenv(name)
    with pytest.raises(PrerequisiteError, match=f"{name} is not set"):
        load_settings().generator()
