"""`generate` against an endpoint by script: what is asked, what is remembered, and what happens when it fails."""

from __future__ import annotations

import json
import time

import pytest
from starlette.responses import Response

from tests.fakes.completions import Body, records, refused
from tests.unit.trainer.generating import FERN, KEY, MOSS, Bench, about_the_text, everything_under, item

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


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
    assert "1 line(s) of files in" in printed
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


def test_requests_are_begun_no_faster_than_the_limit(bench: Bench) -> None:
    began = time.monotonic()  # the first at once, the others a quarter of a second apart
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
