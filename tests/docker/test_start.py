"""A start is boring, and what it starts answers."""

from __future__ import annotations

import re
import subprocess
import time

import openai
from playwright.sync_api import expect

from tests.browser import ANSWER_LIMIT_MS, opened_page
from tests.docker.conftest import QUESTION, WARM_START_S, Trained, image_bytes
from tests.docker.figures import Figures
from tests.docker.stack import Stack, plain_environment, wait_until

LIGHT_MB = 400
BUILD_S = 60


def test_without_secrets_nothing_starts_and_the_way_out_is_told(checkout: Stack) -> None:
    done = subprocess.run(
        ["docker", "compose", "--env-file", ".env.example", "config", "--quiet"],
        cwd=checkout.folder,
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    # Compose names one of those that are empty.
    assert re.search(r"required variable \w+_(KEY|PASSWORD) is missing", done.stderr), done.stderr
    assert "make secrets" in done.stderr


def test_the_gateways_image_is_light_and_builds_fast(checkout: Stack, images: dict[str, str], figures: Figures) -> None:
    base = image_bytes("python:3.11-slim")
    for service, name in images.items():
        size = image_bytes(name)
        asked = f"< {LIGHT_MB} MB" if service == "gateway" else ""
        figures.note(
            "Images",
            f"{service}, beyond its Python base of {base / 1e6:.0f} MB",
            f"{(size - base) / 1e6:.0f} MB",
            asked,
        )
    source = checkout.folder / "services/gateway/preceptor_gateway/__main__.py"
    # A change that no build before has seen, or Docker would take that one's layers.
    change = f"# built at {time.time_ns()}"
    source.write_text(f"{source.read_text()}\n{change}\n")
    began = time.monotonic()
    checkout.compose("build", "gateway")
    seconds = time.monotonic() - began
    figures.note("Images", "gateway, built again after a change of its code", f"{seconds:.1f} s", f"< {BUILD_S} s")
    assert image_bytes(images["gateway"]) - base < LIGHT_MB * 1e6
    built = ("run", "--rm", "--no-deps", "--no-TTY", "--entrypoint", "grep", "gateway", "-c", change)
    path = "/opt/venv/lib/python3.11/site-packages/preceptor_gateway/__main__.py"
    assert checkout.compose(*built, path).stdout.strip() == "1"
    checkout.compose("up", "--detach", "--wait")


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    def lives() -> dict[str, tuple[str, str]]:
        return {
            name: (one["Id"], one["State"]["StartedAt"])
            for name, one in stack.containers().items()
            if one["State"]["Running"]
        }

    before = lives()
    stack.compose("up", "--detach", "--wait")
    assert lives() == before
    assert {"engine", "gateway", "ui", "postgres", "redis"} <= set(before)


def test_the_promoted_adapter_answers_through_the_openai_sdk(stack: Stack, trained: Trained) -> None:
    client = openai.OpenAI(
        base_url=f"{stack.gateway_url}/v1", api_key=stack.settings["GATEWAY_API_KEY"], max_retries=0, timeout=120
    )
    with client:
        assert {"library", "library:base", f"library:{trained.adapter}", "base"} <= {
            one.id for one in client.models.list()
        }
        answer = client.chat.completions.create(
            model="library", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24
        )
        pieces = list(
            client.chat.completions.create(
                model="library",
                messages=[{"role": "user", "content": QUESTION}],
                temperature=0,
                max_tokens=24,
                stream=True,
            )
        )
    assert answer.choices[0].message.content == trained.answer
    assert "".join(one.choices[0].delta.content or "" for one in pieces if one.choices) == trained.answer
    assert re.search(r"nine", trained.answer), trained.answer


def test_the_pages_answer_in_a_browser(stack: Stack, trained: Trained) -> None:
    with opened_page(stack.ui_url) as page:
        page.get_by_role("tab", name="Multiple choice").click()
        page.locator("#mcq-question textarea, #mcq-question input").first.fill("What colour is a clear sky?")
        page.locator("#mcq-options textarea").fill("Blue.\nSausage trigonometry.\nWednesday spoon.")
        page.locator("#mcq-answer").click()
        expect(page.locator("#mcq-result").get_by_role("listitem")).to_have_count(3, timeout=ANSWER_LIMIT_MS)


def test_a_stopped_stack_finishes_its_streams(stack: Stack) -> None:
    body = {
        "model": "library:base",
        "messages": [{"role": "user", "content": "Count to a hundred."}],
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 60,
    }
    lines: list[str] = []
    stopping: subprocess.Popen[str] | None = None
    with stack.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if stopping is None and line.startswith("data: "):
                # The engine last, though both are told at once.
                stopping = stack.begin("stop", "engine", "gateway")
    assert stopping is not None
    said, _ = stopping.communicate(timeout=120)
    assert stopping.returncode == 0, said
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert stack.container("gateway")["State"]["ExitCode"] == 0
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "400")


def test_a_warm_start_is_quick(stack: Stack, trained: Trained, figures: Figures) -> None:
    """All but the engine, which takes what vLLM takes."""
    light = ("gateway", "ui", "postgres", "redis")
    stack.compose("stop", *light)
    began = time.monotonic()
    stack.compose("up", "--detach", "--wait")
    wait_until(lambda: stack.ask("library", QUESTION).status_code == 200, 60, "an answer")
    seconds = time.monotonic() - began
    figures.note(
        "Start", "warm, all but the engine, to the promoted adapter's answer", f"{seconds:.1f} s", f"< {WARM_START_S} s"
    )
