"""`POST /v1/mcq`: up to 256 items, in the client's labels, with what failed beside what did not."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from typing import Any

import httpx
import pytest
from preceptor_contracts.mcq import McqItem
from preceptor_contracts.prompts import render_mcq
from preceptor_contracts.wire_mcq import McqListAnswer
from preceptor_gateway.limits.gate import cost_of

from tests.fakes.engine import ANSWER, BLOCK, END, MAX_MODEL_LEN, template
from tests.unit.gateway.conftest import V1, V2, Stack, StackMaker

Json = dict[str, Any]
LONG = "A passage about allergens in bread and milk. " * 8
TEXTS = ("Milk.", "Eggs.", "Stones.")


def item(question: str = "What is an allergen?", **more: object) -> Json:
    return {"question": question, "options": list(TEXTS), **more}


def ask(stack: Stack, *items: Json, **more: object) -> Json:
    answer = stack.use.post("/v1/mcq", json={"items": items or (item(),), **more})
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    McqListAnswer.model_validate(body)
    return body


def refused(stack: Stack, body: Json) -> tuple[int, str, str | None]:
    answer = stack.use.post("/v1/mcq", json=body)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def completions(stack: Stack) -> list[Json]:
    return [body for path, body in stack.fake.calls if path.endswith("completions")]


def wait_until(claim: Any, limit_s: float = 5) -> None:
    deadline = time.monotonic() + limit_s
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert claim()


def expected(stack: Stack, passage: str = "") -> list[list[float]]:
    """Per option, the fake's logprobs of its bytes and the end of turn."""
    asked = McqItem(question="What is an allergen?", options=TEXTS, passage=passage.strip())
    prompt = template([message.wire() for message in render_mcq(stack.domain, asked)], generation_prompt=True)
    found = []
    for text in TEXTS:
        ids, values = list(prompt), []
        for token in (*text.encode(), END):
            values.append(stack.fake.logprobs("base", ids)[token])
            ids.append(token)
        found.append(values)
    return found


# --- answers ---


@pytest.mark.parametrize(("passage", "way"), [("", "prompt_logprobs"), (LONG, "logprob_token_ids")])
def test_both_ways_of_reading_options_give_the_engines_numbers(stack: Stack, passage: str, way: str) -> None:
    answer = ask(stack, item(passage=passage, id="mine"))
    values = expected(stack, passage)
    (result,) = answer["results"]
    for detail, one in zip(result["options"], values, strict=True):
        assert detail["logprob"] == pytest.approx(math.fsum(one[:-1]))
        assert detail["end_logprob"] == pytest.approx(one[-1])
        assert detail["tokens"] == len(one) - 1
    weights = [math.exp(math.fsum(one) / len(one)) for one in values]
    assert list(result["probabilities"].values()) == pytest.approx([one / sum(weights) for one in weights])
    assert result["off_option_mass"] == pytest.approx(1 - sum(math.exp(math.fsum(one)) for one in values))
    assert result["best"] == result["answer"] == "ABC"[weights.index(max(weights))]
    assert (result["index"], result["id"], result["scoring"], result["flip_rate"]) == (0, "mine", "options", None)
    assert all(way in body for body in completions(stack))


def test_steps_ask_for_the_prompt_first_and_never_twice_for_one_beginning(stack: Stack) -> None:
    body = item(passage=LONG)
    body["options"] = ["Milk and eggs.", "Milk and bread.", "Stones."]
    ask(stack, body)
    first, *rest = completions(stack)
    assert len(first["prompt"]) == 1
    assert sorted(first["logprob_token_ids"]) == sorted(b"MS")
    beginnings = [tuple(ids) for call in rest for ids in call["prompt"]]
    assert len(set(beginnings)) == len(beginnings)
    # "Milk and " is shared: 9 bytes once, not twice.
    assert len(beginnings) == len("Milk and eggs.") + len("Milk and bread.") + len("Stones.") - len("Milk and ")


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (["A) Milk.", "B) Eggs."], ["A", "B"]),
        (["Milk.", "Eggs."], ["A", "B"]),
        (["(a) Milk.", "(c) Eggs."], ["A", "C"]),
        ([{"label": "ii", "text": "Milk."}, {"label": "i", "text": "Eggs."}], ["ii", "i"]),
        ([{"label": "1", "text": "Milk."}, {"label": "Yes", "text": "Eggs."}], ["1", "Yes"]),
    ],
)
def test_the_answer_speaks_the_clients_labels_and_the_prompt_the_layouts(
    make_stack: StackMaker, options: list[object], labels: list[str]
) -> None:
    stack = make_stack(scoring="letters")
    (result,) = ask(stack, {"question": "q?", "options": options})["results"]
    assert list(result["probabilities"]) == [detail["label"] for detail in result["options"]] == labels
    assert result["answer"] in labels
    written = options[labels.index(result["answer"])]
    assert result["choice"] == (written["text"] if isinstance(written, dict) else written)
    user = completions(stack)[-1]["messages"][-1]["content"]
    assert "A) Milk.\nB) Eggs." in user
    assert [detail["tokens"] for detail in result["options"]] == [1, 1]
    assert [detail["end_logprob"] for detail in result["options"]] == [None, None]


def test_ten_options_and_256_items_come_back_in_order(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="letters", batch_concurrency=16)
    many = [{"question": f"Question {n}?", "options": [f"o{k}" for k in range(2 + n % 9)]} for n in range(256)]
    answer = ask(stack, *many)
    assert [result["index"] for result in answer["results"]] == list(range(256))
    assert [len(result["options"]) for result in answer["results"]] == [len(one["options"]) for one in many]
    alone = ask(stack, many[7])["results"][0]
    assert alone["probabilities"] == answer["results"][7]["probabilities"]
    assert stack.fake.most_together <= 16
    assert (
        f'preceptor_answers_total{{adapter="base",domain="clinic",kind="mcq"}} {257.0}'
        in stack.use.get("/metrics").text
    )


def test_concurrency_is_bounded_by_sequences(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="letters", batch_concurrency=6)
    stack.fake.token_delay_s = 0.02
    ask(stack, *(item(f"Question {n}?") for n in range(8)), debias="cyclic")
    assert 3 < stack.fake.most_together <= 6


def test_abstains_below_the_threshold_and_still_says_its_best_guess(stack: Stack) -> None:
    sure = ask(stack)["results"][0]
    top = max(sure["probabilities"].values())
    unsure = ask(stack, abstain_below=top + 0.01)["results"][0]
    assert (unsure["answer"], unsure["choice"], unsure["abstained"]) == (None, None, True)
    assert unsure["best"] == sure["answer"] == sure["best"]
    assert ask(stack, abstain_below=top)["results"][0]["abstained"] is False


def test_cyclic_debiasing_averages_all_rotations(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="letters")
    plain = ask(stack)["results"][0]
    one = ask(stack, debias="cyclic")["results"][0]
    asked = [body["messages"][-1]["content"] for body in completions(stack)[1:]]
    assert len(asked) == len(set(asked)) == 3
    turned = ask(stack, {**item(), "options": [TEXTS[1], TEXTS[2], TEXTS[0]]}, debias="cyclic")["results"][0]
    texts = dict(zip(TEXTS, one["probabilities"].values(), strict=True))
    again = dict(zip((TEXTS[1], TEXTS[2], TEXTS[0]), turned["probabilities"].values(), strict=True))
    assert texts == again
    assert one["flip_rate"] == turned["flip_rate"]
    assert one["flip_rate"] * 3 in (0, 1, 2, 3)
    assert plain["flip_rate"] is None
    assert sum(one["probabilities"].values()) == pytest.approx(1)
    assert one["prompt_tokens"] == 3 * plain["prompt_tokens"]


def test_options_scoring_has_no_order_to_debias(stack: Stack) -> None:
    plain = ask(stack)
    calls = len(completions(stack))
    debiased = ask(stack, debias="cyclic")
    assert len(completions(stack)) == 2 * calls
    assert debiased["results"][0]["flip_rate"] == 0
    assert debiased["results"][0]["probabilities"] == plain["results"][0]["probabilities"]
    assert debiased["debias"] == "cyclic"


@pytest.mark.parametrize("scoring", ["letters", "options"])
def test_items_on_one_passage_share_the_prefix_cache(make_stack: StackMaker, scoring: str) -> None:
    stack = make_stack(scoring=scoring)
    other = LONG.replace("bread", "water")
    # Interleaved on purpose: the gateway puts a passage's items side by side.
    answer = ask(stack, *(item(f"Question {n}?", passage=(LONG, other)[n % 2]) for n in range(6)))
    results = answer["results"]
    cold = [result for result in results if result["cached_tokens"] < len(LONG) // 2]
    assert len(cold) <= 2
    assert all(result["cached_tokens"] % BLOCK == 0 for result in results)
    assert all(result["cached_tokens"] < result["prompt_tokens"] for result in results)
    assert answer["usage"] == {
        "prompt_tokens": sum(result["prompt_tokens"] for result in results),
        "cached_tokens": sum(result["cached_tokens"] for result in results),
    }


def test_items_on_one_passage_are_asked_side_by_side_and_answered_in_their_place(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="letters", batch_concurrency=1)
    passages = ["", "On bread.", "On milk.", "On bread.", "", "On milk."]
    answer = ask(stack, *(item(f"Question {n}?", passage=one, id=str(n)) for n, one in enumerate(passages)))
    asked = [str(body["messages"][-1]["content"]) for body in completions(stack)]
    assert [text[text.index("Question") + 9] for text in asked] == list("041325")
    assert [result["id"] for result in answer["results"]] == list("012345")


def test_adapter_served_name_and_safety_are_told(stack: Stack) -> None:
    stack.add(V1)
    stack.load(V1).raise_for_status()
    answer = ask(stack, item("I can't breathe?"), item(), model=f"clinic:{V1}")
    assert (answer["served"], answer["adapter"], answer["domain"]) == (f"clinic:{V1}", V1, "clinic")
    assert [result["safety"] for result in answer["results"]] == [["Call 112 first."], []]
    assert answer["disclaimer"] == "Not advice."
    assert {body["model"] for body in completions(stack)} == {V1}
    sent = stack.use.post("/v1/mcq", json={"items": [item()]}, headers={"x-request-id": "abc"})
    assert sent.json()["request_id"] == "abc"


# --- bad input: nothing reaches the engine ---


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"options": ["a"]}, "choices_count", "items.1.options"),
        ({"options": [str(n) for n in range(11)]}, "choices_count", "items.1.options"),
        ({"options": ["A) a", "b"]}, "choices_mixed", "items.1.options"),
        ({"options": ["a", {"label": "B", "text": "b"}]}, "choices_mixed", "items.1.options"),
        ({"options": ["A) a", "A) b"]}, "duplicate_label", "items.1.options"),
        ({"options": [{"label": "i", "text": "a"}, {"label": "i", "text": "b"}]}, "duplicate_label", "items.1.options"),
        ({"options": ["a", " A "]}, "invalid_field", "items.1.options"),
        ({"options": ["A) ", "B) b"]}, "choice_empty", "items.1.options"),
        (
            {"options": [{"label": "", "text": "a"}, {"label": "B", "text": "b"}]},
            "invalid_field",
            "items.1.options.0.label",
        ),
        (
            {"options": [{"label": "A", "text": "a", "x": 1}, {"label": "B", "text": "b"}]},
            "invalid_field",
            "items.1.options.0.x",
        ),
        ({"options": "ab"}, "invalid_field", "items.1.options"),
        ({"options": [1, 2]}, "invalid_field", "items.1.options.0"),
        ({"question": " "}, "invalid_field", "items.1.question"),
        ({"odd": 1}, "invalid_field", "items.1.odd"),
        ({"id": "x" * 201}, "invalid_field", "items.1.id"),
    ],
)
def test_one_bad_item_refuses_the_request_with_its_place(stack: Stack, change: Json, code: str, param: str) -> None:
    assert refused(stack, {"items": [item(), {**item(), **change}]}) == (400, code, param)
    assert not completions(stack)


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"items": []}, 400, "invalid_field", "items"),
        ({"items": [item()] * 257}, 400, "invalid_field", "items"),
        ({"items": [item(), item()], "explain": True}, 400, "invalid_field", "explain"),
        ({"abstain_below": 1.5}, 400, "invalid_field", "abstain_below"),
        ({"debias": "all"}, 400, "invalid_field", "debias"),
        ({"question": "q"}, 400, "invalid_field", "question"),
        ({"domain": "nope"}, 404, "unknown_domain", "domain"),
        ({"model": "base"}, 400, "no_mcq", "model"),
        ({"model": "clinic"}, 404, "nothing_promoted", "model"),
    ],
)
def test_a_bad_request_is_refused_as_a_whole(stack: Stack, change: Json, status: int, code: str, param: str) -> None:
    assert refused(stack, {"items": [item()], **change}) == (status, code, param)
    assert not completions(stack)


@pytest.mark.parametrize("field", ["passage", "id", "question"])
def test_half_a_surrogate_pair_is_told_at_its_field(stack: Stack, field: str) -> None:
    body = json.dumps({"items": [{**item(), field: "\ud800"}]})
    answer = stack.use.post("/v1/mcq", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"items.0.{field}")


# --- faults ---


@pytest.mark.parametrize("scoring", ["letters", "options"])
def test_one_item_that_is_too_long_does_not_lose_the_others(make_stack: StackMaker, scoring: str) -> None:
    stack = make_stack(scoring=scoring)
    answer = ask(stack, item(), item("a" * MAX_MODEL_LEN, id="long"), item("Another?"))
    first, second, third = answer["results"]
    assert first["answer"]
    assert third["answer"]
    assert second["error"]["code"] == "context_length_exceeded"
    assert (second["index"], second["id"], second["error"]["type"]) == (1, "long", "invalid_request_error")
    assert set(second) == {"index", "id", "error", "hint"}
    assert answer["usage"]["prompt_tokens"] == first["prompt_tokens"] + third["prompt_tokens"]


def test_an_only_item_that_fails_is_the_requests_error(stack: Stack) -> None:
    assert refused(stack, {"items": [item("a" * MAX_MODEL_LEN)]}) == (400, "context_length_exceeded", None)
    stack.fake.fail_with = 503
    answer = stack.use.post("/v1/mcq", json={"items": [item(), item("Another?")]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_an_engine_that_dies_in_the_middle_costs_what_it_had_not_answered(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="letters", batch_concurrency=2)
    stack.fake.die_after = 3
    answer = ask(stack, *(item(f"Question {n}?") for n in range(6)))
    codes = [result.get("error", {}).get("code") for result in answer["results"]]
    assert codes.count(None) == 3
    assert codes.count("engine_down") == 3


def test_an_adapter_that_the_engine_lost_is_loaded_again(stack: Stack) -> None:
    stack.add(V1)
    stack.load(V1).raise_for_status()
    stack.fake.restart()
    stack.fake.models_delay_s = 0.5
    status, code, _ = refused(stack, {"items": [item(), item("Another?")], "model": f"clinic:{V1}"})
    assert (status, code) == (503, "adapter_reloading")
    stack.fake.models_delay_s = 0
    wait_until(lambda: stack.use.post("/v1/mcq", json={"items": [item()], "model": f"clinic:{V1}"}).status_code == 200)


@pytest.mark.parametrize("scoring", ["letters", "options"])
def test_a_client_that_leaves_cancels_all_that_is_in_the_engine(make_stack: StackMaker, scoring: str) -> None:
    stack = make_stack(scoring=scoring, batch_concurrency=12)
    stack.fake.token_delay_s = 5
    body = {"items": [item(f"Question {n}?") for n in range(100)]}
    with pytest.raises(httpx.ReadTimeout):
        stack.use.post("/v1/mcq", json=body, timeout=httpx.Timeout(5, read=0.5))
    begun = 12 if scoring == "letters" else 4
    wait_until(lambda: stack.fake.aborted == begun, limit_s=2)
    time.sleep(0.2)
    assert len(completions(stack)) == begun


def test_an_alias_that_moves_does_not_split_a_batch(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="letters", batch_concurrency=1)
    for name in (V1, V2):
        stack.add(name)
        stack.load(name).raise_for_status()
    stack.promote(V1, force=True).raise_for_status()
    stack.fake.calls.clear()
    stack.fake.token_delay_s = 0.05
    found: list[Json] = []
    thread = threading.Thread(
        target=lambda: found.append(ask(stack, *(item(f"{n}?") for n in range(12)), domain="clinic"))
    )
    thread.start()
    wait_until(lambda: len(completions(stack)) >= 2)
    stack.promote(V2, force=True).raise_for_status()
    thread.join()
    assert (found[0]["served"], found[0]["adapter"]) == ("clinic", V1)
    assert {body["model"] for body in completions(stack)} == {V1}
    stack.fake.token_delay_s = 0
    assert ask(stack, domain="clinic")["adapter"] == V2


# --- explain ---


def events(text: str) -> list[Json | str]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_explanation_follows_the_answer(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="letters")
    stack.add(V1)
    stack.load(V1).raise_for_status()
    options = [{"label": "i", "text": "Milk."}, {"label": "ii", "text": "Stones."}]
    asked = {"question": "Which {one}?", "options": options, "passage": "A {passage}."}
    body = {"items": [asked], "explain": True, "model": f"clinic:{V1}"}
    reply = stack.use.post("/v1/mcq", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    first, *texts, last = events(reply.text)
    answer = McqListAnswer.model_validate(first["answer"])  # type: ignore[index]  # JSON
    assert "".join(event["text"] for event in texts) == "The fake engine's answer."  # type: ignore[index]  # JSON
    assert last == "[DONE]"
    sent = stack.sent()
    best = getattr(answer.results[0], "best", None)
    told = dict(zip(("i", "ii"), ("i) Milk.", "ii) Stones."), strict=True))[str(best)]
    assert sent["messages"] == [
        {"role": "system", "content": "You are a clinic. {braces} stay."},
        {
            "role": "user",
            "content": "A {passage}.\n\nWhich {one}?\n\ni) Milk.\nii) Stones.\n\n"
            f"The answer is {told}\n\nSay in two or three sentences why.",
        },
    ]
    assert (sent["model"], sent["stop_token_ids"], sent["max_tokens"], sent["stream"]) == (V1, [END], 33, True)


def test_an_explanation_counts_in_series_and_limits(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="letters", tokens_per_minute=50_000)
    answer, *_ = events(stack.use.post("/v1/mcq", json={"items": [item()], "explain": True}).text)
    scored: int = answer["answer"]["usage"]["prompt_tokens"]  # type: ignore[index, assignment]  # JSON

    def series(name: str) -> float:
        text = stack.use.get("/metrics").text
        return sum(map(float, re.findall(rf'^{name}{{.*route="/v1/mcq".*}} (\S+)$', text, re.MULTILINE)))

    wait_until(lambda: series("preceptor_requests_total") == 1)
    asked = stack.sent()
    read = series("preceptor_prompt_tokens_total") - scored
    assert read == len(template(asked["messages"], generation_prompt=True))  # type: ignore[arg-type]  # JSON
    written = series("preceptor_completion_tokens_total")
    assert written == len(ANSWER) + 1  # a token a byte, and the end
    again = stack.use.post("/v1/mcq", json={"items": [item()]})
    estimate = cost_of(again.request.content).tokens
    assert int(again.headers["x-ratelimit-remaining-tokens"]) == 50_000 - scored - read - written - estimate


def test_error_in_the_explanation_is_an_event_and_not_the_end_of_the_answer(stack: Stack) -> None:
    stack.fake.drop_after = 1
    first, text, error = events(stack.use.post("/v1/mcq", json={"items": [item()], "explain": True}).text)
    assert first["answer"]["results"][0]["answer"]  # type: ignore[index]  # JSON
    assert text == {"text": "The"}
    assert error["error"]["code"] == "engine_down"  # type: ignore[index]  # JSON


def test_engine_that_refuses_the_explanation_is_an_event(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="options")
    stack.fake.die_after = 1
    first, error = events(stack.use.post("/v1/mcq", json={"items": [item()], "explain": True}).text)
    assert "answer" in first
    assert error["error"]["code"] == "engine_down"  # type: ignore[index]  # JSON


def test_item_that_fails_is_not_explained(stack: Stack) -> None:
    answer = stack.use.post("/v1/mcq", json={"items": [item("a" * MAX_MODEL_LEN)], "explain": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_domain_that_explains_nothing_says_so_before_the_engine_is_asked(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="options, explain: null")
    asked = len(completions(stack))
    assert refused(stack, {"items": [item()], "explain": True}) == (400, "no_explanations", "explain")
    assert len(completions(stack)) == asked
    assert ask(stack)["results"][0]["answer"]


def test_a_rule_that_speaks_instead_leaves_nothing_to_explain(make_stack: StackMaker) -> None:
    first = make_stack()
    path = first.adapters.parent / "domains/clinic/domain.yaml"
    path.write_text(path.read_text().replace("{name: emergency,", "{name: emergency, instead: true,"))
    stack = make_stack()
    body = {"items": [item("He can't breathe. What now?")], "explain": True}
    answer, last = events(stack.use.post("/v1/mcq", json=body).text)
    assert answer["answer"]["results"][0]["safety"] == ["Call 112 first."]  # type: ignore[index]  # JSON
    assert last == "[DONE]"
    assert not [path for path, _ in stack.fake.calls if path == "/v1/chat/completions"]


def test_client_that_leaves_the_explanation_cancels_the_engine(stack: Stack) -> None:
    answer = ask(stack)
    assert answer["results"]
    stack.fake.token_delay_s = 0.3
    with stack.use.stream("POST", "/v1/mcq", json={"items": [item()], "explain": True}) as reply:
        for line in reply.iter_lines():
            if '"text"' in line:
                break
    left = time.monotonic()
    wait_until(lambda: stack.fake.aborted == 1, limit_s=3)
    assert time.monotonic() - left < 1.5


def test_two_batches_at_a_time_do_not_mix(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="letters")
    stack.fake.token_delay_s = 0.01
    lists = [[item(f"{side} {n}?") for n in range(20)] for side in ("left", "right")]
    found: dict[int, list[Json]] = {}

    def one(index: int) -> None:
        found[index] = ask(stack, *lists[index])["results"]

    threads = [threading.Thread(target=one, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert found[index][13]["probabilities"] == ask(stack, lists[index][13])["results"][0]["probabilities"]
