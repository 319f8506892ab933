"""The arena: Open WebUI, set as docker-compose.yaml sets it, in a real browser, in front of a gateway."""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
import pytest
from playwright.sync_api import Page, expect
from preceptor_contracts.report import Verdict

from tests.browser import ANSWER_LIMIT_MS, opened_page
from tests.docker.open_webui import ENVIRONMENT, OpenWebUI, Person, compose_environment, prepared, running_open_webui
from tests.docker.stack import Stack, docker_answers
from tests.fakes.engine import FakeEngine
from tests.prerequisites import require
from tests.unit.gateway.conftest import V1, stack_maker

QUESTION = "How soon does a reaction start?"
HIDDEN_CALLS_S = 5
"""Open WebUI begins its hidden calls when an answer ends."""
LISTS = {"/", "/health", "/metrics", "/v1/models"}
"""Routes of the gateway that ask nothing of an engine."""


@dataclass(frozen=True)
class Behind:
    """The gateway that Open WebUI asks.

    Attributes:
        url: Without `/v1`.
        key: One of scope `use`.
        domain: One with a promoted adapter: what `.env` has as ARENA_DOMAIN.
        engine: The engine where it is the fake one, which remembers what it was asked.
    """

    url: str
    key: str
    domain: str
    engine: FakeEngine | None = None

    def asked(self) -> Counter[str]:
        """How often the gateway was asked for an answer so far, by served name; other requests by route."""
        pattern = r'^preceptor_requests_total{adapter="(.+?)",domain="(.+?)",route="(.+?)",status="\d+"} (\S+)$'
        text = httpx.get(f"{self.url}/metrics", timeout=10).raise_for_status().text
        found: Counter[str] = Counter()
        for adapter, domain, route, count in re.findall(pattern, text, re.MULTILINE):
            side = f"{domain}:base" if adapter == "base" else domain
            found[side if route == "/v1/chat/completions" else route] += int(float(count))
        return Counter({name: count for name, count in found.items() if name not in LISTS})


@pytest.fixture(scope="module", params=["fake engine", "compose"])
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """Our gateway in front of the fake engine, which remembers what it was asked; and that of the Compose stack."""
    if request.param == "compose":
        require(docker_answers(), "No Docker engine with Compose answers.", everywhere=False)
        started: Stack = request.getfixturevalue("started")
        request.getfixturevalue("trained")
        yield Behind(started.gateway_url, started.settings["GATEWAY_API_KEY"], "library")
        return
    with stack_maker(tmp_path_factory.mktemp("behind")) as make:
        stack = make()
        report = stack.add(V1, Verdict.BETTER)
        stack.load(V1).raise_for_status()
        stack.promote(V1, report=report).raise_for_status()
        yield Behind(stack.url, "use-key", stack.domain.name, stack.fake)


@pytest.fixture(scope="module")
def arena(behind: Behind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWebUI]:
    """Open WebUI in front of it."""
    require(prepared(), "Open WebUI cannot be installed. Run `.venv/bin/python -m tests.docker.open_webui`.")
    folder = tmp_path_factory.mktemp("open-webui")
    with running_open_webui(folder, behind.url, dotenv(behind.domain, behind.key)) as one:
        yield one


def dotenv(domain: str, key: str = "a-key") -> dict[str, str]:
    """What `.env` says to the service."""
    return {"GATEWAY_API_KEY": key, "WEBUI_SECRET_KEY": secrets.token_urlsafe(32), "ARENA_DOMAIN": domain}


@pytest.fixture(scope="module")
def admin(arena: OpenWebUI) -> Person:
    """Whoever came first."""
    return arena.sign_up("Ada")


@pytest.fixture(scope="module")
def voter(arena: OpenWebUI, admin: Person) -> Person:
    """Somebody whom the admin let in: people who compare answers are no admins."""
    return arena.add(admin, "Ben")


class Vote(NamedTuple):
    """One vote, as it was given in the browser.

    Attributes:
        served: Whose answer it was, as the page said after the vote.
        asked: What the gateway was asked meanwhile.
        bodies: What the engine was asked meanwhile, where it remembers.
    """

    served: str
    asked: Counter[str]
    bodies: list[dict[str, Any]]


@pytest.fixture(scope="module")
def vote(behind: Behind, arena: OpenWebUI, voter: Person) -> Vote:
    """A voter logs in, asks the arena, reads the answer and gives it a thumb."""
    before = behind.asked()
    calls = len(behind.engine.calls) if behind.engine else 0
    with opened_page(arena.url) as page:
        log_in(page, voter)
        page.get_by_role("button", name=f"Selected model: {behind.domain}: specialist or base?").wait_for()
        page.locator("#chat-input").click()
        page.keyboard.type(QUESTION)
        page.keyboard.press("Enter")
        thumb = page.get_by_role("button", name="Good Response")
        thumb.wait_for(timeout=ANSWER_LIMIT_MS)
        expect(page.get_by_text("This response was generated by")).to_have_count(0)
        thumb.click()
        told = page.get_by_text("This response was generated by").first
        told.wait_for()
        time.sleep(HIDDEN_CALLS_S)
        expect(page.locator("[data-sonner-toast][data-type=error]")).to_have_count(0)
        (served,) = re.findall(r'"(.+)"', told.inner_text())
    bodies = [body for _, body in behind.engine.calls[calls:]] if behind.engine else []
    return Vote(served, behind.asked() - before, bodies)


def log_in(page: Page, person: Person) -> None:
    page.get_by_placeholder("Enter Your Email").fill(person.email)
    page.get_by_placeholder("Enter Your Password").fill(person.password)
    page.get_by_role("button", name="Sign in").click()
    page.locator("#chat-input").wait_for(timeout=ANSWER_LIMIT_MS)


def test_the_first_to_sign_up_is_the_admin_and_shuts_the_door(arena: OpenWebUI, admin: Person) -> None:
    assert admin.role == "admin"
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        arena.sign_up("Eve")


def test_a_voter_may_choose_every_served_name_and_the_arena(behind: Behind, voter: Person) -> None:
    names = voter.served_names()
    assert names.keys() >= {behind.domain, f"{behind.domain}:base", "base", f"arena-{behind.domain}"}
    entry = names[f"arena-{behind.domain}"]
    assert entry["owned_by"] == "arena"
    assert entry["info"]["meta"]["model_ids"] == [behind.domain, f"{behind.domain}:base"]


def test_the_vote_exports_with_the_served_name_behind_it(behind: Behind, admin: Person, vote: Vote) -> None:
    (exported,) = admin.votes()
    assert vote.served in {behind.domain, f"{behind.domain}:base"}
    assert exported["data"]["model_id"] == vote.served
    assert exported["data"]["rating"] == 1
    assert exported["meta"]["arena"] is True
    assert QUESTION in str(exported["snapshot"])


def test_a_question_is_one_request_to_the_side_that_was_drawn(vote: Vote) -> None:
    assert vote.asked == {vote.served: 1}


def test_the_engine_gets_the_domains_prompt_and_the_question_and_no_tools(behind: Behind, vote: Vote) -> None:
    if behind.engine is None:
        pytest.skip("vLLM refuses tools, and remembers nothing.")
    (body,) = vote.bodies
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][-1]["content"] == QUESTION
    assert "tools" not in body


def test_what_is_switched_off_is_off(admin: Person) -> None:
    features = admin.features()
    off = (
        *("title_generation", "tags_generation", "follow_up_generation", "autocomplete_generation", "signup"),
        *("version_update_check", "community_sharing", "context_compaction", "web_search", "image_generation"),
        *("notes", "calendar", "automations", "memories", "code_execution", "code_interpreter"),
    )
    assert {name: features[f"enable_{name}"] for name in off} == dict.fromkeys(off, False)
    assert features["slim"] is True


def test_open_webui_reads_every_variable_of_the_service(arena: OpenWebUI) -> None:
    """A renamed one would be passed over in silence."""
    (package,) = ENVIRONMENT.folder.glob("lib/python3*/site-packages/open_webui")
    source = "".join((package / name).read_text() for name in ("env.py", "config.py"))
    read = set(re.findall(r"(?:getenv|environ\.get)\(\s*'([A-Z0-9_]+)'", source))
    assert set(compose_environment("open-webui", dotenv("any"))) - read == set()


def test_a_restart_keeps_votes_and_accounts_and_the_door_shut(arena: OpenWebUI, admin: Person, vote: Vote) -> None:
    arena.process.end()
    arena.start()
    assert [one["data"]["model_id"] for one in admin.votes()] == [vote.served]
    assert admin.features()["enable_signup"] is False
