"""The main job on real parts: a (very short) training becomes an adapter that real vLLM serves through the gateway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from preceptor_contracts.domains import load_domain
from preceptor_contracts.frozen import read_jsonl
from preceptor_contracts.manifest import read_adapter, verify_files
from preceptor_contracts.records import QUESTIONS
from preceptor_contracts.report import Report

from tests.integration.conftest import TRAINER, RealStack, only_adapter, trainer
from tests.stack import REPO


def listed(stack: RealStack) -> list[str]:
    return [view["adapter"] for view in stack.use.get("/v1/adapters").json()["data"]]


def test_the_run_ends_with_a_verdict_and_everything_on_disk(
    real_stack: RealStack, short_run: subprocess.CompletedProcess[str]
) -> None:
    assert short_run.returncode in (0, 3), short_run.stdout + short_run.stderr
    adapter = read_adapter(real_stack.adapters / only_adapter(real_stack, "sql"))
    verify_files(adapter)
    manifest = adapter.manifest
    exam = read_jsonl(load_domain(real_stack.domains / "sql").exam, QUESTIONS)
    assert manifest.parity.samples == manifest.parity.matched >= len(exam)
    assert manifest.canary.separation > 0.01
    run = real_stack.runs / manifest.run_id
    report = Report.model_validate_json((run / "report.json").read_text())
    assert report.n == len(exam)
    assert report.adapter.served == f"sql:{manifest.adapter}"
    assert (run / "report.md").stat().st_size > 100
    stages = [json.loads(line)["stage"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert {"prepare", "plan", "train", "publish", "evaluate"} <= set(stages)
    assert f"n = {report.n}" in short_run.stdout
    assert f"{report.adapter.accuracy:.3f}" in short_run.stdout


def test_promoted_adapter_answers_streams_and_survives_an_engine_kill(
    real_stack: RealStack, short_run: subprocess.CompletedProcess[str]
) -> None:
    name = only_adapter(real_stack, "sql")
    promoted = real_stack.admin.post("/v1/domains/sql/promote", json={"adapter": name, "force": True})
    assert promoted.json()["promoted"] == name
    body = {
        "model": "sql",
        "messages": [{"role": "user", "content": "How many patients live in Leeds?"}],
        "temperature": 0,
        "max_tokens": 24,
    }
    before = real_stack.use.post("/v1/chat/completions", json=body).raise_for_status()
    assert before.headers["x-preceptor-adapter"] == name
    with real_stack.use.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
        pieces = [line for line in stream.iter_lines() if line.startswith("data: ")]
    assert len(pieces) > 3
    assert pieces[-1] == "data: [DONE]"

    lines = []
    endless = {**body, "stream": True, "ignore_eos": True, "max_tokens": 900}
    with real_stack.use.stream("POST", "/v1/chat/completions", json=endless) as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if len(lines) == 8:
                real_stack.engine.process.end(signal.SIGKILL)
    last = json.loads([line for line in lines if line][-1].removeprefix("data: "))
    assert (last["error"]["code"], last["request_id"]) == ("engine_down", stream.headers["x-request-id"])
    down = real_stack.use.post("/v1/chat/completions", json=body)
    assert (down.status_code, down.json()["error"]["code"]) == (503, "engine_down")
    real_stack.engine.start()
    deadline = time.monotonic() + 60
    while real_stack.use.get("/health").json()["status"] != "ok" and time.monotonic() < deadline:
        time.sleep(0.2)
    after = real_stack.use.post("/v1/chat/completions", json=body).raise_for_status()
    assert after.json()["choices"][0]["message"]["content"] == before.json()["choices"][0]["message"]["content"]


def test_mcq_on_real_vllm_scores_options(real_stack: RealStack) -> None:
    item = {
        "model": "allergy:base",
        "question": "What colour is a clear sky?",
        "choices": ["A) Blue.", "B) Sausage trigonometry.", "C) Wednesday spoon."],
    }
    answer = real_stack.use.post("/submit_mcq", json=item).raise_for_status().json()
    assert answer["answer"] == "A"
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert 0 < answer["off_option_mass"] < 1


def test_letters_on_real_vllm_take_one_prefill_and_keep_the_mass_outside_them(real_stack: RealStack) -> None:
    item = {
        "model": "letters:base",
        "text": "A passage about the sky.",
        "question": "What colour is a clear sky?",
        "choices": ["A) Blue.", "B) Green.", "C) Red.", "D) Black."],
    }
    answer = real_stack.use.post("/submit_mcq", json=item).raise_for_status().json()
    assert answer["scoring"] == "letters"
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert 0 < answer["off_option_mass"] < 1
    rendered = real_stack.use.post(
        "/v1/domains/letters/render",
        json={
            "mcq": {
                "passage": item["text"],
                "question": item["question"],
                "options": ["Blue.", "Green.", "Red.", "Black."],
            }
        },
    ).raise_for_status()
    assert answer["prompt_tokens"] == len(rendered.json()["token_ids"])


def test_killed_trainer_leaves_nothing_that_is_listed(
    real_stack: RealStack, short_run: subprocess.CompletedProcess[str]
) -> None:
    before = listed(real_stack)
    child = subprocess.Popen(
        [TRAINER, "run", "sql", "--max-steps", "50"],
        env={**os.environ, **real_stack.env},
        cwd=REPO,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        known = {path.name for path in real_stack.runs.iterdir()}
        deadline = time.monotonic() + 240
        started = False
        while not started and time.monotonic() < deadline:
            time.sleep(0.5)
            for run in {path.name for path in real_stack.runs.iterdir()} - known:
                events = real_stack.runs / run / "events.jsonl"
                started = events.exists() and '"step"' in events.read_text()
        assert started, "the killed run never reached a training step"
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)
    assert listed(real_stack) == before


def test_bad_input_is_exit_code_2_with_a_sentence(real_stack: RealStack, tmp_path: Path) -> None:
    unknown = trainer(real_stack, "run", "no-such-domain")
    assert unknown.returncode == 2
    assert "'no-such-domain'" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": "1", "kind": "chat"}\n{not json\n')
    bad = trainer(real_stack, "run", "sql", "--data", str(broken))
    assert bad.returncode == 2
    assert "line 1" in bad.stderr
    assert "line 2" in bad.stderr


def test_official_openai_sdk_works_and_raises_its_own_exceptions(real_stack: RealStack) -> None:
    import openai

    url = f"{real_stack.url}/v1"
    with (
        openai.OpenAI(base_url=url, api_key="use-key-for-tests", max_retries=0) as client,
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger,
    ):
        assert "base" in [card.id for card in client.models.list()]
        chunks = client.chat.completions.create(
            model="sql:base", messages=[{"role": "user", "content": "Hi"}], max_tokens=3, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        with pytest.raises(openai.NotFoundError, match="nope"):
            client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "Hi"}])
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            client.chat.completions.create(model="sql:base", messages=[{"role": "user", "content": "word " * 4000}])
