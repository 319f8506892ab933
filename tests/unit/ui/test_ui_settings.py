"""Settings, health check, and the page's outer shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from preceptor_contracts.errors import InvalidInput, PrerequisiteError
from preceptor_ui import __main__ as entry
from preceptor_ui import health
from preceptor_ui.app import create_app
from preceptor_ui.health import health_url
from preceptor_ui.settings import Settings, load_settings
from starlette.testclient import TestClient


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("UI_HOST", "UI_PORT", "UI_GATEWAY_URL", "GATEWAY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_missing_key_says_what_to_run() -> None:
    with pytest.raises(PrerequisiteError, match="make setup"):
        load_settings()


def test_empty_key_is_a_missing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", "")
    with pytest.raises(PrerequisiteError):
        load_settings()


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", "k1")
    settings = load_settings()
    assert (settings.host, settings.port, str(settings.gateway_url)) == ("127.0.0.1", 7860, "http://127.0.0.1:8000/")
    assert "k1" not in repr(settings)


def test_dotenv_is_read_and_foreign_keys_are_ignored(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GATEWAY_API_KEY=k2\nUI_PORT=7999\nHF_TOKEN=x\nUI_UNKNOWN=1\n")
    settings = load_settings()
    assert (settings.gateway_api_key.get_secret_value(), settings.port) == ("k2", 7999)


def test_environment_wins_over_dotenv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GATEWAY_API_KEY=k2\n")
    monkeypatch.setenv("GATEWAY_API_KEY", "k3")
    assert load_settings().gateway_api_key.get_secret_value() == "k3"


@pytest.mark.parametrize(("name", "value"), [("UI_PORT", "0"), ("UI_PORT", "x"), ("UI_GATEWAY_URL", "nowhere")])
def test_bad_values_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", "k1")
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=name.removeprefix("UI_").lower()):
        load_settings()


def test_bad_key_is_never_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", "geheim schlüssel")
    with pytest.raises(InvalidInput) as caught:
        load_settings()
    assert "geheim" not in str(caught.value)


def test_main_without_key_exits_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main() == 1
    assert "make setup" in capsys.readouterr().err


def test_health_check_fails_with_a_sentence(monkeypatch: pytest.MonkeyPatch, closed_url: str) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", "k1")
    monkeypatch.setenv("UI_PORT", str(httpx.URL(closed_url).port))
    assert health.main() == 1


@pytest.mark.parametrize(
    ("host", "asked"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("localhost", "localhost"), ("10.1.2.3", "10.1.2.3")],
)
def test_health_check_asks_a_reachable_address(settings_for: Callable[..., Settings], host: str, asked: str) -> None:
    settings = settings_for("http://127.0.0.1:8000").model_copy(update={"host": host})
    assert health_url(settings) == f"http://{asked}:7860/health"


def test_page_is_served_and_keeps_the_browser_here(settings_for: Callable[..., Settings], closed_url: str) -> None:
    with TestClient(create_app(settings_for(closed_url))) as browser:
        page = browser.get("/")
        config = browser.get("/config").json()
        assert browser.get("/health").json() == {"status": "ok"}
        assert browser.get("/docs").status_code == 404
    assert page.status_code == 200
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert not config["analytics_enabled"]
    assert config["footer_links"] == []
    assert "fonts.googleapis.com" not in page.text


def test_handlers_are_not_offered_as_an_api(settings_for: Callable[..., Settings], closed_url: str) -> None:
    with TestClient(create_app(settings_for(closed_url))) as browser:
        offered = browser.get("/gradio_api/info").json()
    assert offered["named_endpoints"] == {}
    assert offered["unnamed_endpoints"] == {}
