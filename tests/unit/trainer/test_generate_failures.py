"""`generate` when the endpoint refuses, is busy, silent or down, or answers what cannot be used."""

from __future__ import annotations

import time

import pytest
from pydantic import AnyHttpUrl
from starlette.responses import PlainTextResponse, Response

from tests.fakes.completions import Body, called, records, refused, said
from tests.unit.trainer.generating import KEY, Bench, about_the_text, item

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


@pytest.mark.parametrize("refuses", [("json_schema",), ("json_schema", "tools")])
def test_an_endpoint_that_refuses_a_schema_is_asked_in_another_way_and_remembered(
    bench: Bench, refuses: tuple[str, ...]
) -> None:
    def picky(body: Body) -> Response:
        asked = "tools" if "tools" in body else body["response_format"]["type"]
        if asked in refuses:
            return refused(400, f"{asked} is not supported")
        if asked == "tools":
            topic = body["messages"][-1]["content"].rsplit(": ", 1)[1]
            return called(body["tools"][0]["function"]["name"], item(f"Where in the garden does {topic} thrive best?"))
        return about_the_text(body)

    bench.endpoint.answer = picky
    assert bench.run("--topics", "reed,moss,fern")[0] == 0
    assert len(bench.rows()) == 3
    assert len(bench.endpoint.bodies) == 3 + len(refuses)
    bench.run("--topics", "clover")
    assert len(bench.endpoint.bodies) == 4 + len(refuses), "a later run begins with the way that worked"


def test_an_endpoint_that_refuses_every_way_is_told(bench: Bench) -> None:
    bench.endpoint.answer = lambda body: refused(400, "Unknown field messages.")
    code, printed = bench.run("--topics", "reed,moss")
    assert code == 1
    assert "refuses the request: 'Error code: 400" in printed
    assert len(bench.endpoint.bodies) == 3
    assert not (bench.work / "candidates.jsonl").exists()


def test_a_busy_endpoint_is_waited_for(bench: Bench) -> None:
    def busy_once(body: Body) -> Response:
        return (
            refused(429, "Slow down.", **{"Retry-After": "0.2"})
            if len(bench.endpoint.bodies) == 1
            else about_the_text(body)
        )

    bench.endpoint.answer = busy_once
    assert bench.run("--topics", "reed")[0] == 0
    assert len(bench.rows()) == 1
    assert len(bench.endpoint.bodies) == 2


def test_an_endpoint_that_stays_busy_ends_the_run(bench: Bench) -> None:
    bench.endpoint.answer = lambda body: refused(429, "Slow down.", **{"Retry-After": "0.01"})
    code, printed = bench.run("--topics", "reed,moss,fern")
    assert code == 1
    assert "status 429 after 3 tries" in printed
    assert len(bench.endpoint.bodies) == 3


def test_a_quota_that_is_used_up_for_long_is_not_waited_for(bench: Bench) -> None:
    bench.endpoint.answer = lambda body: refused(429, "Quota exceeded.", **{"Retry-After": "3600"})
    code, printed = bench.run("--topics", "reed,moss")
    assert code == 1
    assert "Quota exceeded" in printed
    assert len(bench.endpoint.bodies) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        refused(401, f"Incorrect API key provided: {KEY}."),
        refused(403, f"{KEY} may not."),
        refused(400, f"API key not valid: {KEY}. Please pass a valid API key."),
    ],
    ids=["401", "403", "400, as Gemini answers"],
)
def test_a_wrong_key_names_the_setting_and_never_the_key(bench: Bench, wrong: Response) -> None:
    bench.endpoint.answer = lambda body: wrong
    code, printed = bench.run("--topics", "reed,moss,fern")
    assert code == 1
    assert "TRAINER_GENERATOR_API_KEY" in printed
    assert len(bench.endpoint.bodies) == 1


def test_an_unknown_served_name_is_told(bench: Bench) -> None:
    bench.endpoint.answer = lambda body: refused(404, "The model g does not exist.")
    code, printed = bench.run("--topics", "reed")
    assert code == 1
    assert "served name 'g'" in printed
    assert "TRAINER_GENERATOR_NAME" in printed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (said("I would rather not."), "not of the shape asked for: 'I would rather not.'"),
        (said(""), "the answer was empty"),
        (said(None, refusal="I cannot help with that."), "refused: 'I cannot help with that.'"),
        (said('{"records": [{"topic": "a", "que', finish_reason="length"), "cut off by the limit on tokens"),
        (records(), "held no records"),
        (records({"question": "What?"}), "no record could be used"),
        (records(item("  ")), "no record could be used"),
    ],
    ids=["prose", "empty", "refusal", "cut off", "no records", "fields missing", "blank question"],
)
def test_an_unusable_answer_is_asked_for_thrice_then_skipped_and_listed(
    bench: Bench, answer: Response, says: str
) -> None:
    bench.endpoint.answer = lambda body: answer if "moss" in body["messages"][-1]["content"] else about_the_text(body)
    code, printed = bench.run("--topics", "reed,moss,fern")
    assert code == 0
    assert "Given up after 3: topic: moss: " in printed
    assert says in printed
    assert len(bench.endpoint.bodies) == 5
    assert len(bench.rows()) == 2
    bench.run("--topics", "reed,moss,fern")
    assert len(bench.endpoint.bodies) == 5, "what was given up is not asked again by itself"
    bench.endpoint.answer = about_the_text
    assert bench.run("--topics", "reed,moss,fern", "--retry-failed")[0] == 0
    assert len(bench.endpoint.bodies) == 6
    assert len(bench.rows()) == 3


def test_a_chunk_too_long_for_the_endpoint_stops_no_other(bench: Bench) -> None:
    def small(body: Body) -> Response:
        long = "moss" in body["messages"][-1]["content"]
        return refused(400, "This model's maximum context length is 9 tokens.") if long else about_the_text(body)

    bench.endpoint.answer = small
    code, printed = bench.run("--topics", "moss,reed")
    assert code == 0
    assert "Given up after 1: topic: moss: too long for the endpoint" in printed
    assert len(bench.rows()) == 1


def test_nothing_usable_at_all_exits_1(bench: Bench) -> None:
    bench.endpoint.answer = lambda body: said("Hello!")
    assert bench.run("--topics", "moss,reed")[0] == 1


@pytest.mark.parametrize("page", ["<html>Welcome</html>", '{"hello": "world"}'])
def test_something_else_than_an_endpoint_is_told(bench: Bench, page: str) -> None:
    bench.endpoint.answer = lambda body: PlainTextResponse(page, media_type="application/json")
    code, printed = bench.run("--topics", "moss")
    assert code == 1
    assert "no chat completion" in printed
    assert "TRAINER_GENERATOR_URL" in printed
    assert "Traceback" not in printed


def test_an_endpoint_that_is_down_is_told(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"generator_url": AnyHttpUrl("http://127.0.0.1:9/v1")})
    code, printed = bench.run("--topics", "moss")
    assert code == 1
    assert "The endpoint at 127.0.0.1:9 does not answer." in printed
    assert "run the same command again" in printed


def test_silence_ends_in_a_sentence(bench: Bench) -> None:
    def silent(body: Body) -> Response:
        time.sleep(0.5)
        return about_the_text(body)

    bench.endpoint.answer = silent
    bench.settings = bench.settings.model_copy(update={"generator_timeout_s": 0.1})
    code, printed = bench.run("--topics", "moss")
    assert code == 1
    assert "no answer within 0.1 s" in printed
