"""Settings: what is misspelt is told, not ignored."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENGINE_URLS", "http://me:geheim@127.0.0.1:1"),
        ("GATEWAY_LIMITS_URL", "redis://me:p@ss:geheim@127.0.0.1"),
        ("GATEWAY_LIMITS_URL", "nonsense://me:geheim@127.0.0.1"),
        ("GATEWAY_DATABASE_URL", "postgresql+psycopg://me:p@ss:geheim@127.0.0.1/d"),
    ],
)
def test_a_wrong_url_is_a_sentence_that_names_the_setting_and_no_password(
    tmp_path: Path, name: str, value: str
) -> None:
    env = {
        **os.environ,
        "DOMAINS_DIR": str(REPO / "domains"),
        "GATEWAY_API_KEY": "a",
        "GATEWAY_ADMIN_KEY": "b",
        "GATEWAY_DATABASE_URL": f"sqlite:///{tmp_path / 'gateway.db'}",
        name: value,
    }
    command = [sys.executable, "-m", "preceptor_gateway"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert name in said
    assert "geheim" not in said
    assert "Traceback" not in said
