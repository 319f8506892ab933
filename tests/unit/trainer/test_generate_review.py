"""What people get to review, and how accepted rows become training records."""

from __future__ import annotations

import json
from typing import Any

import pytest
from preceptor_contracts.records import RECORDS
from starlette.responses import Response

from tests.fakes.completions import Body, records
from tests.unit.trainer.fixtures import write_jsonl
from tests.unit.trainer.generating import MOSS, Bench, item

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries

GOOD = item("Through which part does moss take its water in?", "Through its leaves.", "It drinks through its leaves")
ODD = item("Does moss, in winter, stay green?", "Yes; all year.", "Moss  is green\nall year.")


def write(bench: Bench, *items: Body, kind: str = "chat", topics: str = "", text: str = MOSS) -> str:
    """Generates from one document; the endpoint answers with these items."""
    bench.endpoint.answer = lambda body: records(*items)
    path = bench.document(f"moss-{len(bench.endpoint.bodies)}.txt", text)
    code, printed = bench.run("--documents", path, "--kind", kind)
    assert code == 0, printed
    return printed


def test_evidence_that_is_not_in_the_document_is_marked(bench: Bench) -> None:
    made_up = item("How tall will moss grow over ten years?", "A metre.", "Moss grows a metre tall.")
    short = item("What colour has it when snow lies on top?", "Green.", "green")
    assert "2 of these with evidence that is not" in write(bench, GOOD, ODD, made_up, short)
    assert [row["note"] for row in bench.rows()] == ["", "", "unsupported", "unsupported"]


def test_what_the_domain_or_another_candidate_asks_already_is_left_out(bench: Bench) -> None:
    trained = item("Say the tint of plant number 3 called clover!")
    examined = item("which colour would fern show in picture 1")
    again = item("Through which part of it does moss take its water in?")
    printed = write(bench, GOOD, trained, examined, again)
    assert "1 repeat an exam question, 1 a training record, 1 another candidate" in printed
    assert [row["question"] for row in bench.rows()] == [GOOD["question"]]


def test_records_of_a_file_of_ones_own_are_not_repeated_either(bench: Bench) -> None:
    own = bench.document("own.csv", f"question,answer\n{GOOD['question']},By its leaves.\n")
    bench.endpoint.answer = lambda body: records(GOOD, ODD)
    code, printed = bench.run("--documents", bench.document("moss.md", MOSS), "--data", own)
    assert code == 0
    assert "1 a training record" in printed
    assert f"--data {own}" in printed
    assert [row["question"] for row in bench.rows()] == [ODD["question"]]
    rows = bench.trained()
    code, printed = bench.run("--accept", bench.mark("yes", question=GOOD["question"]), "--data", own)
    assert (code, bench.trained()) == (0, rows)
    assert "Left out" in printed
    code, printed = bench.run("--topics", "reed", "--data", bench.root / "none.csv")
    assert code == 2
    assert "none.csv' is no file" in printed


def test_accepted_rows_become_records_with_the_changes_of_the_reviewer(bench: Bench) -> None:
    write(bench, GOOD, ODD, item("Is there any moss without leaves?", "No."))
    before = bench.trained()
    mended: dict[str, Any] = {
        "question": "How does moss drink?",
        "answer": 'By its "leaves"\nönly.',
        "topic": "drinking",
    }
    path = bench.mark("yes", "no", "", **mended)
    code, printed = bench.run("--accept", path)
    assert code == 0
    assert "1 record(s) appended" in printed
    assert "1 rejected, 1 not decided" in printed
    *old, new = bench.trained()
    assert old == before
    assert new["messages"] == [
        {"role": "user", "content": "How does moss drink?"},
        {"role": "assistant", "content": 'By its "leaves"\nönly.'},
    ]
    assert (new["kind"], new["topic"], new["source"]) == ("chat", "drinking", "generated")
    assert new["id"].startswith("gen-plants-")
    RECORDS.validate_python(new)
    assert [row["question"] for row in bench.rows()] == ["Is there any moss without leaves?"]


def test_accepting_the_same_file_again_appends_nothing(bench: Bench) -> None:
    write(bench, GOOD, ODD)
    path = bench.mark("yes", "yes", path=bench.root / "copy.csv")
    bench.run("--accept", path)
    before = bench.train.read_bytes()
    code, printed = bench.run("--accept", path)
    assert code == 0
    assert "0 record(s) appended" in printed
    assert "2 stood there before" in printed
    assert bench.train.read_bytes() == before


def test_a_kill_between_records_and_decisions_is_mended_by_accepting_again(bench: Bench) -> None:
    write(bench, GOOD, ODD)
    path = bench.mark("yes", "no", path=bench.root / "copy.csv")
    bench.run("--accept", path)
    (bench.work / "decisions.jsonl").unlink()
    assert bench.run("--accept", path)[0] == 0
    assert len(bench.trained()) == 11
    assert [row for row in bench.rows() if row["accept"]] == []


def test_rejected_and_accepted_ones_are_not_proposed_again(bench: Bench) -> None:
    write(bench, GOOD, ODD)
    bench.run("--accept", bench.mark("no", "yes"))
    near = {**GOOD, "question": "Through which part does moss take in its water?"}
    write(bench, GOOD, near, ODD, text=f"{MOSS} More of it.")
    assert bench.rows() == []


def test_one_who_thinks_again_may_accept_what_was_rejected(bench: Bench) -> None:
    write(bench, GOOD)
    copy = bench.mark("no", path=bench.root / "copy.csv")
    bench.run("--accept", copy)
    copy.write_text(copy.read_text(encoding="utf-8").replace("no,gen", "yes,gen"), encoding="utf-8")
    assert bench.run("--accept", copy)[0] == 0
    assert len(bench.trained()) == 11


def test_rejecting_what_was_accepted_before_is_refused(bench: Bench) -> None:
    write(bench, GOOD)
    copy = bench.mark("yes", path=bench.root / "copy.csv")
    bench.run("--accept", copy)
    copy.write_text(copy.read_text(encoding="utf-8").replace("yes,gen", "no,gen"), encoding="utf-8")
    code, printed = bench.run("--accept", copy)
    assert code == 2
    assert "was accepted before" in printed
    assert len(bench.trained()) == 11


def test_bad_cells_are_told_together_and_nothing_is_written(bench: Bench) -> None:
    write(bench, GOOD, ODD, item("Is there any moss without leaves?"), item("Where could I buy good garden moss?"))
    rows = bench.rows()
    path = bench.mark("yes", "maybe", "yes", "yes", question="")
    text = path.read_text(encoding="utf-8").replace(rows[2]["id"], "gen-plants-x")
    path.write_text(text.replace("chat,plants,Where", "mcq,plants,Where"), encoding="utf-8")
    before = bench.train.read_bytes()
    code, printed = bench.run("--accept", path)
    assert code == 2
    for problem in (
        "row 2 (line 2), column 'question'",
        "row 3 (line 4), column 'accept': 'maybe'",
        "row 4 (line 5), column 'id': 'gen-plants-x' is no candidate",
        "row 5 (line 6), column 'kind': 'mcq' must stay 'chat'",
        "Mend 4 cell(s) of review.csv",
    ):
        assert problem in printed, printed
    assert bench.train.read_bytes() == before
    assert not (bench.work / "decisions.jsonl").exists()


def test_a_row_that_gives_the_exam_away_is_refused(bench: Bench) -> None:
    write(bench, GOOD, ODD)
    path = bench.mark("yes", "yes", question="Which colour would fern show in picture 1?")
    code, printed = bench.run("--accept", path)
    assert code == 2
    assert "row 2 (line 2), column 'question': repeats exam question 'e1'" in printed
    assert len(bench.trained()) == 10


def test_a_row_that_repeats_a_record_after_all_is_left_out(bench: Bench) -> None:
    write(bench, GOOD, ODD)
    path = bench.mark("yes", "yes", question="Say the tint of plant number 3 called clover")
    code, printed = bench.run("--accept", path)
    assert code == 0
    assert "1 record(s) appended" in printed
    assert "repeats t3" in printed
    assert bench.rows() == []


@pytest.mark.parametrize("mark", ["yes", "Y", "1", "x", "TRUE", "ja", "WAHR"])
def test_many_words_mean_yes(bench: Bench, mark: str) -> None:
    write(bench, GOOD)
    assert bench.run("--accept", bench.mark(mark))[0] == 0
    assert len(bench.trained()) == 11


def test_multiple_choice_comes_back_with_changed_options(bench: Bench) -> None:
    write(bench, item("Which colour has moss the whole year?", "Green", wrong=["Red", "Blue", "White"]), kind="mcq")
    (row,) = bench.rows()
    right = f"option_{row['answer'].lower()}"
    wrong = next(f"option_{label}" for label in "abcd" if f"option_{label}" != right)
    assert bench.run("--accept", bench.mark("yes", **dict[str, Any]({wrong: "", right: "Dark green"})))[0] == 0
    new = bench.trained()[-1]
    assert new["options"][new["answer"]] == "Dark green"
    assert len(new["options"]) == 3
    RECORDS.validate_python(new)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": "E"}, "column 'answer': 'E' is not the letter of an option that is there (A, B, C, D)"),
        ({"answer": ""}, "column 'answer': is empty"),
        ({"option_a": "same", "option_b": "Same"}, "column 'options': option 'Same' stands there twice"),
        ({"topic": ""}, "column 'topic': is empty"),
        (
            {"option_b": "", "option_c": "", "option_d": "", "answer": "a"},
            "column 'options': Tuple should have at least 2",
        ),
    ],
)
def test_a_spoilt_multiple_choice_row_is_told(bench: Bench, change: dict[str, Any], says: str) -> None:
    write(bench, item("Which colour has moss the whole year?", "Green", wrong=["Red", "Blue", "White"]), kind="mcq")
    code, printed = bench.run("--accept", bench.mark("yes", **change))
    assert code == 2
    assert says in printed


def test_exact_answers_become_prompt_completion(bench: Bench) -> None:
    write(bench, GOOD, kind="prompt_completion")
    bench.run("--accept", bench.mark("yes"))
    new = bench.trained()[-1]
    assert (new["prompt"], new["completion"]) == (GOOD["question"], GOOD["answer"])


def test_marks_and_changes_survive_a_further_generate(bench: Bench) -> None:
    write(bench, GOOD, ODD)
    bench.mark("yes", "", separator=";", answer="Mended; by hand", note="asked Anna")
    assert write(bench, item("Is there any moss without leaves?"), text=f"{MOSS} More.").count("1 of them new") == 1
    text = bench.review.read_text(encoding="utf-8-sig")
    assert text.startswith("accept;id;kind;")
    assert '"Mended; by hand"' in text
    assert "asked Anna" in text
    assert [line.split(";")[0] for line in text.splitlines() if ";gen-plants-" in line] == ["yes", "", ""]


def test_training_data_that_cannot_be_read_is_told_before_anything_is_asked(bench: Bench) -> None:
    bench.train.write_text("{\n", encoding="utf-8")
    assert bench.run("--topics", "reed")[0] == 2
    assert bench.endpoint.bodies == []


def test_a_review_file_that_cannot_be_read_is_told_before_anything_is_asked(bench: Bench) -> None:
    write(bench, GOOD)
    bench.review.write_text("x,y\n1,2\n", encoding="utf-8")
    asked = len(bench.endpoint.bodies)
    code, printed = bench.run("--topics", "reed")
    assert code == 2
    assert "no column 'accept'" in printed
    assert len(bench.endpoint.bodies) == asked


def test_nothing_is_accepted_while_the_other_review_file_cannot_be_read(bench: Bench) -> None:
    write(bench, GOOD)
    copy = bench.mark("yes", path=bench.root / "copy.csv")
    bench.review.write_text("x,y\n1,2\n", encoding="utf-8")
    assert bench.run("--accept", copy)[0] == 2
    assert len(bench.trained()) == 10


def test_records_may_go_into_another_file_and_are_not_doubled_there(bench: Bench) -> None:
    write(bench, GOOD, ODD)
    copy = bench.mark("yes", "yes", path=bench.root / "copy.csv")
    into = bench.root / "new" / "more.jsonl"
    assert bench.run("--accept", copy, "--into", into)[0] == 0, "its folder is made"
    assert bench.run("--accept", copy, "--into", into)[0] == 0
    assert len(into.read_text().splitlines()) == 2
    assert len(bench.trained()) == 10


@pytest.mark.parametrize("into", ["exam.jsonl", "."])
def test_records_never_go_into_the_exam_or_a_folder(bench: Bench, into: str) -> None:
    write(bench, GOOD)
    exam = (bench.folder / "exam.jsonl").read_bytes()
    assert bench.run("--accept", bench.mark("yes"), "--into", bench.folder / into)[0] == 2
    assert (bench.folder / "exam.jsonl").read_bytes() == exam


def test_a_domain_may_begin_without_records_and_exam(bench: Bench) -> None:
    bench.train.write_text("", encoding="utf-8")
    (bench.folder / "exam.jsonl").unlink()
    write(bench, GOOD)
    assert bench.run("--accept", bench.mark("yes"))[0] == 0
    assert len(bench.trained()) == 1


def test_a_file_without_a_last_line_break_keeps_its_last_record(bench: Bench) -> None:
    bench.train.write_bytes(bench.train.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
    before = bench.train.read_bytes()
    write(bench, GOOD)
    bench.run("--accept", bench.mark("yes"))
    assert bench.train.read_bytes().startswith(before + b"\n{")


def test_bad_training_data_is_told_by_line(bench: Bench) -> None:
    write(bench, GOOD)
    with bench.train.open("a") as stream:
        stream.write("{\n")
    code, printed = bench.run("--accept", bench.mark("yes"))
    assert code == 2
    assert "train.jsonl line 11" in printed


def test_formulas_do_not_reach_a_spreadsheet_and_come_back_as_they_were(bench: Bench) -> None:
    evil = ['=HYPERLINK("http://x")', "+1", "-2 to 3", "@SUM(A1)", "1-2", "May 5", "'=quoted", "\uff1d1+1", "'90s moss"]
    items = [item(f"Which {word} is in note {word}?", text) for word, text in zip("abcdefghi", evil, strict=True)]
    write(bench, *items)
    assert [row["answer"] for row in bench.rows()] == [f"'{text}" for text in evil]
    bench.run("--accept", bench.mark(*["yes"] * len(evil)))
    assert [row["messages"][1]["content"] for row in bench.trained()[10:]] == evil


@pytest.mark.parametrize(
    ("separator", "encoding"), [(";", "utf-8"), ("\t", "utf-16"), (",", "utf-8"), (";", "utf-8-sig")]
)
def test_what_spreadsheets_write_in_other_countries_is_read(bench: Bench, separator: str, encoding: str) -> None:
    write(bench, item("Wächst Moos auch an Mauern, Zäunen; Dächern?", 'Ja; "überall",\nauch dort.'))
    path = bench.mark("ja", separator=separator)
    path.write_bytes(path.read_text(encoding="utf-8-sig").encode(encoding))
    assert bench.run("--accept", path)[0] == 0
    assert bench.trained()[-1]["messages"][1]["content"] == 'Ja; "überall",\nauch dort.'


def test_an_old_encoding_is_refused_with_what_to_choose(bench: Bench) -> None:
    write(bench, item("Wächst Moos auch an Mauern?", "Ja."))
    path = bench.mark("ja")
    path.write_bytes(path.read_text(encoding="utf-8-sig").encode("cp1252"))
    code, printed = bench.run("--accept", path)
    assert code == 2
    assert "CSV UTF-8" in printed
    assert bench.run("--accept", bench.root / "nowhere.csv")[0] == 2


def test_the_separator_of_a_new_file_can_be_chosen(bench: Bench) -> None:
    bench.run("--topics", "reed", "--separator", ";")
    assert bench.review.read_bytes().startswith("\ufeffaccept;id;kind;topic;question;answer;".encode())


def test_records_are_spelled_as_people_spell_them(bench: Bench) -> None:
    def umlaut(body: Body) -> Response:
        return records(item("Wächst Moos auch an Mauern?", "Ja."))

    bench.endpoint.answer = umlaut
    bench.run("--topics", "Moos")
    bench.run("--accept", bench.mark("yes"))
    line = bench.train.read_text(encoding="utf-8").splitlines()[-1]
    assert list(json.loads(line)) == ["id", "kind", "topic", "source", "messages"]
    assert "Wächst" in line


def test_a_marked_row_waits_while_another_file_is_accepted(bench: Bench) -> None:
    write(bench, GOOD, ODD)
    copy = bench.mark("yes", "", path=bench.root / "copy.csv")
    bench.mark("", "no")
    bench.run("--accept", copy)
    assert [(row["accept"], row["question"]) for row in bench.rows()] == [("no", ODD["question"])]


def test_a_domain_that_has_its_questions_in_several_shapes_is_compared_with_all(bench: Bench) -> None:
    write_jsonl(
        bench.train,
        [
            {
                "id": "c",
                "kind": "chat",
                "topic": "m",
                "messages": [
                    {"role": "user", "content": "Does moss, in winter, stay green?"},
                    {"role": "assistant", "content": "Yes."},
                ],
            },
            {
                "id": "i",
                "kind": "instruction",
                "topic": "m",
                "instruction": "Through which part does moss take its water in?",
                "output": "Leaves.",
            },
        ],
    )
    assert "2 a training record" in write(bench, GOOD, ODD)


def test_lines_are_never_put_behind_a_table(bench: Bench) -> None:
    write(bench, GOOD)
    table = bench.folder / "faq.csv"
    table.write_text("question,answer\nWhy?,Because.\n")
    before = table.read_bytes()
    code, printed = bench.run("--accept", bench.mark("yes"), "--into", table)
    assert code == 2
    assert "--into FILE" in printed
    assert table.read_bytes() == before
