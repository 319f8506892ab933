"""Settings: what is misspelt is told, not ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_gateway.settings import unknown_settings

from tests.stack import REPO


def test_what_looks_like_a_setting_and_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("GATEWAY_ENGINE_URL=http://127.0.0.1:8001\nGATEWAY_API_KEY=a\nUI_PORT=1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_PROT", "8000")
    monkeypatch.setenv("GATEWAY_PORT", "8000")
    monkeypatch.setenv("ENGINE_URLS", "http://127.0.0.1:8001")
    assert unknown_settings() == ["GATEWAY_ENGINE_URL", "GATEWAY_PROT"]


def test_the_example_file_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text((REPO / ".env.example").read_text())
    monkeypatch.chdir(tmp_path)
    assert unknown_settings() == []
