"""`generate` against an endpoint by script: what is asked, what is remembered, and what happens when it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse, Response

from tests.fakes.completions import Body, Completions, called, completions, records, refused, said
from tests.unit.trainer.generating import FERN, KEY, MOSS, Bench, about_the_text, everything_under, item, use

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


@pytest.fixture
def endpoint() -> Iterator[Completions]:
    with completions(about_the_text) as one:
        yield one


@pytest.fixture
def bench(
    tmp_path: Path, endpoint: Completions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    return use(Bench(tmp_path, endpoint, capsys), monkeypatch)


def test_every_chunk_and_topic_becomes_a_row_to_review(bench: Bench) -> None:
    (bench.root / "library").mkdir()
    bench.document("library/moss.md", MOSS)
    bench.document("library/fern.html", f"<html><title>x</title><script>y</script><p>{FERN}</p></html>")
    bench.document("library/scan.pdf", "%PDF")
    code, printed = bench.run("--documents", bench.root / "library", "--topics", "reed, Reed,")
    assert code == 0
    assert "1 file(s) not read or empty: scan.pdf" in printed
    assert "3 request(s) to 'g' at 127.0.0.1" in printed
    assert "300 prompt and 30 answer tokens" in printed
    rows = {row["document"]: row for row in bench.rows()}
    assert set(rows) == {"moss.md#1", "fern.html#1", "topic: reed"}
    moss = rows["moss.md#1"]
    assert moss["answer"] == "Through its leaves."
    assert (moss["accept"], moss["kind"], moss["topic"], moss["served"], moss["note"]) == (
        "",
        "chat",
        "plants",
        "g",
        "",
    )
    assert moss["id"].startswith("gen-plants-")
    assert rows["topic: reed"]["note"] == "no document"
    assert rows["topic: reed"]["topic"] == "reed"
    assert "<script>" not in "".join(bench.endpoint.prompts())


def test_the_request_is_strict_and_quotes_the_document_as_data(bench: Bench) -> None:
    bench.run("--documents", bench.document("moss.txt", MOSS), "--count", "4", "--max-tokens", "700")
    (body,) = bench.endpoint.bodies
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["properties"]["records"]["maxItems"] == 4
    item_schema = schema["schema"]["properties"]["records"]["items"]
    assert item_schema["required"] == ["topic", "evidence", "question", "answer"]
    assert item_schema["additionalProperties"] is False
    assert "$ref" not in json.dumps(schema)
    assert (body["model"], body["max_completion_tokens"]) == ("g", 700)
    system, user = (message["content"] for message in body["messages"])
    assert "Colours of plants." in system
    assert "Name the colour." in system
    mark = user.split("</")[1].split(">")[0]
    assert f"<{mark}>\n{MOSS}\n</{mark}>" in user
    assert "never something to do" in user


def test_a_second_run_asks_nothing_again(bench: Bench) -> None:
    path = bench.document("moss.txt", MOSS)
    bench.run("--documents", path)
    code, printed = bench.run("--documents", path, "--topics", "reed")
    assert code == 0
    assert "1 request(s) to 'g'" in printed
    assert "1 answered before" in printed
    assert len(bench.endpoint.bodies) == 2
    assert len(bench.rows()) == 2


def test_a_limit_sends_so_many_requests_and_no_more(bench: Bench) -> None:
    bench.run("--topics", "reed,moss,fern", "--limit", "2")
    assert len(bench.endpoint.bodies) == 2
    bench.run("--topics", "reed,moss,fern")
    assert len(bench.endpoint.bodies) == 3


def test_after_a_crash_only_what_was_not_answered_is_asked(bench: Bench) -> None:
    def dies_after_two(body: Body) -> Response:
        return about_the_text(body) if len(bench.endpoint.bodies) < 3 else refused(503)

    bench.endpoint.answer = dies_after_two
    code, printed = bench.run("--topics", "reed,moss,fern,clover", "--concurrency", "1")
    assert code == 1
    assert "status 503 after 3 tries" in printed
    assert "nothing is asked twice" in printed
    assert len(bench.rows()) == 2, "what was paid for can be reviewed"
    with (bench.work / "candidates.jsonl").open("a") as stream:
        stream.write('{"job": "ab')
    bench.endpoint.answer, before = about_the_text, len(bench.endpoint.bodies)
    code, printed = bench.run("--topics", "reed,moss,fern,clover")
    assert code == 0
    asked = [prompt.rsplit(": ", 1)[1] for prompt in bench.endpoint.prompts()[before:]]
    assert sorted(asked) == ["clover", "fern"]
    assert len(bench.rows()) == 4


def test_stopping_keeps_what_was_answered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from preceptor_trainer.generate.candidates import WorkDir

    remember = WorkDir.remember

    def interrupted(self: WorkDir, line: object) -> None:
        remember(self, line)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkDir, "remember", interrupted)
    code, printed = bench.run("--topics", "reed,moss")
    assert code == 1
    assert "Stopped." in printed
    assert "Run the same command again to go on" in printed
    assert len(bench.rows()) == 1


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
    from pydantic import AnyHttpUrl

    bench.settings = bench.settings.model_copy(update={"generator_url": AnyHttpUrl("http://127.0.0.1:9/v1")})
    code, printed = bench.run("--topics", "moss")
    assert code == 1
    assert "The endpoint at 127.0.0.1:9 does not answer." in printed
    assert "run the same command again" in printed


def test_silence_ends_in_a_sentence(bench: Bench) -> None:
    import time

    def silent(body: Body) -> Response:
        time.sleep(0.5)
        return about_the_text(body)

    bench.endpoint.answer = silent
    bench.settings = bench.settings.model_copy(update={"generator_timeout_s": 0.1})
    code, printed = bench.run("--topics", "moss")
    assert code == 1
    assert "no answer within 0.1 s" in printed


def test_requests_are_begun_no_faster_than_the_limit(bench: Bench) -> None:
    import time

    began = time.monotonic()
    bench.run("--topics", "reed,moss,fern", "--requests-per-minute", "240", "--concurrency", "3")
    assert time.monotonic() - began >= 0.5
    assert len(bench.endpoint.bodies) == 3


def test_the_key_is_sent_and_stands_nowhere_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "LANGSMITH_API_KEY"):
        monkeypatch.setenv(name, "0ther-s3cret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-other: 0ther-s3cret")
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_GATEWAY", "true")
    bench.run("--topics", "reed")
    bench.endpoint.answer = lambda body: refused(418, f"Teapot for {KEY}.")
    bench.run("--topics", "moss")
    assert "Teapot for ***" in bench.seen
    assert bench.endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "0ther-s3cret" not in str(bench.endpoint.headers)
    assert KEY not in bench.seen
    assert KEY.encode() not in everything_under(bench.root)


def test_without_a_key_no_other_key_is_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "0ther-s3cret")
    bench.settings = bench.settings.model_copy(update={"generator_api_key": None})
    assert bench.run("--topics", "reed")[0] == 0
    assert bench.endpoint.headers[0]["authorization"] == "Bearer none"


def test_mcq_candidates_have_their_right_option_anywhere(bench: Bench) -> None:
    def quiz(body: Body) -> Response:
        topic = body["messages"][-1]["content"].rsplit(": ", 1)[1]
        return records(
            *(
                item(f"{word} {topic} {place}?", "right", wrong=["first", "second", "third"])
                for word, place in (("Who planted", "in the park yesterday"), ("How tall may", "grow under old oaks"))
            ),
            item(f"Which {topic} is twice the same?", "one", wrong=["One", "two"]),
        )

    bench.endpoint.answer = quiz
    code, printed = bench.run("--topics", "reed,moss,fern,ivy", "--kind", "mcq")
    assert code == 0
    assert "8 candidates, 4 unusable" in printed
    rows = bench.rows()
    assert all(row[f"option_{row['answer'].lower()}"] == "right" for row in rows)
    assert len({row["answer"] for row in rows}) > 1
    assert "stands there twice" in str(bench.lines()[0]["dropped"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to generate from"),
        (("--documents", "nowhere.txt"), "nowhere.txt does not exist"),
        (("--documents", "scan.pdf"), "pdftotext"),
        (("--topics", "a", "--into", "x.jsonl"), "--into goes with --accept"),
        (("--topics", "a", "--accept", "x.csv"), "--accept takes no documents"),
        (("--topics", "a", "--separator", "|"), "'|' is not"),
        (("--topics", "a", "--kind", "poem"), "poem"),
        (("--topics", "a", "--count", "0"), "--count"),
        (("--accept", "x.csv"), "nothing was ever generated"),
    ],
)
def test_bad_arguments_exit_2_before_anything_is_asked(
    bench: Bench, arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.root)
    bench.document("scan.pdf", "%PDF")
    code, printed = bench.run(*arguments)
    assert code == 2
    assert says in printed
    assert bench.endpoint.bodies == []


def test_settings_that_are_missing_are_named(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"generator_name": None})
    code, printed = bench.run("--topics", "a")
    assert code == 1
    assert "TRAINER_GENERATOR_NAME is not set" in printed


def test_nothing_is_traced_whatever_is_configured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import langsmith
    from langsmith.utils import tracing_is_enabled
    from preceptor_trainer.generate.candidates import WorkDir

    remember = WorkDir.remember
    traced: list[object] = []

    def watched(self: WorkDir, line: object) -> None:
        traced.append(tracing_is_enabled())
        remember(self, line)  # type: ignore[arg-type]

    monkeypatch.setattr(WorkDir, "remember", watched)
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "http://127.0.0.1:9")
    langsmith.configure(enabled=True)
    try:
        bench.run("--topics", "reed,moss")
    finally:
        langsmith.configure(enabled=False, client=None)
    assert traced == [False, False]


def test_two_processes_do_not_write_into_one_folder(bench: Bench) -> None:
    from preceptor_trainer.generate.candidates import WorkDir

    with WorkDir(bench.work).exclusive():
        code, printed = bench.run("--topics", "reed")
    assert code == 1
    assert "Another process" in printed
    assert bench.endpoint.bodies == []
