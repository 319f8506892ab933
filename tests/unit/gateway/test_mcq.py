"""Multiple choice: both scorings against the fake's known distribution."""

from __future__ import annotations

import math

import pytest
from preceptor_contracts.mcq import McqItem
from preceptor_contracts.prompts import render_mcq

from tests.fakes.engine import END, template
from tests.unit.gateway.conftest import V1, Stack, StackMaker

CHOICES = ["A) Milk.", "B) Eggs.", "C) Stones."]
ITEM = McqItem(question="What is an allergen?", options=("Milk.", "Eggs.", "Stones."))


def submit(stack: Stack, **more: object) -> dict[str, object]:
    answer = stack.use.post("/submit_mcq", json={"question": ITEM.question, "choices": CHOICES, **more})
    body: dict[str, object] = answer.json()
    return body


def test_options_score_each_text_as_the_whole_answer(stack: Stack) -> None:
    prompt = template([message.wire() for message in render_mcq(stack.domain, ITEM)], generation_prompt=True)
    means, sums = [], []
    for option in ITEM.options:
        ids, values = list(prompt), []
        for token in (*option.encode(), END):
            values.append(stack.fake.logprobs("base", ids)[token])
            ids.append(token)
        means.append(sum(values) / len(values))
        sums.append(sum(values))
    expected = [math.exp(mean) for mean in means]
    answer = submit(stack, domain="clinic")
    assert answer["scoring"] == "options"
    assert list(answer["probabilities"].values()) == pytest.approx([e / sum(expected) for e in expected])  # type: ignore[attr-defined]  # JSON
    assert answer["off_option_mass"] == pytest.approx(1 - sum(map(math.exp, sums)))
    assert answer["answer"] == "ABC"[means.index(max(means))]
    assert answer["choice"] == CHOICES[means.index(max(means))]


def test_letters_take_one_prefill_and_keep_the_honest_mass(make_stack: StackMaker) -> None:
    stack = make_stack(scoring="letters")
    prompt = template([message.wire() for message in render_mcq(stack.domain, ITEM)], generation_prompt=True)
    logprobs = [stack.fake.logprobs("base", prompt)[ord(label)] for label in "ABC"]
    answer = submit(stack)
    assert answer["off_option_mass"] == pytest.approx(1 - sum(map(math.exp, logprobs)))
    sent = [body for path, body in stack.fake.calls if path.endswith("completions")]
    assert len(sent) == 1
    assert "structured_outputs" not in sent[0]
    assert (sent[0]["max_tokens"], sent[0]["logprob_token_ids"]) == (1, [65, 66, 67])


def test_labels_of_the_client_come_back(stack: Stack) -> None:
    answer = submit(stack, choices=["(a) Milk.", "(c) Eggs."])
    assert set(answer["probabilities"]) == {"A", "C"}  # type: ignore[call-overload]  # JSON


def test_passage_and_adapter_are_used(stack: Stack) -> None:
    stack.add(V1)
    stack.load(V1).raise_for_status()
    answer = submit(stack, model=f"clinic:{V1}", text="A passage.")
    assert (answer["adapter"], answer["served"]) == (V1, f"clinic:{V1}")
    assert stack.sent("/v1/completions")["model"] == V1


def test_emergency_in_a_question_is_told(stack: Stack) -> None:
    assert submit(stack, question="I can't breathe, what now?")["safety"] == ["Call 112 first."]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"choices": ["A) a", "A) b", "C) c", "D) d", "E) e"]}, 400, "duplicate_label"),
        ({"choices": ["a", "A"]}, 400, "invalid_field"),
        ({"choices": ["a"]}, 400, "choices_count"),
        ({"choices": [str(number) for number in range(11)]}, 400, "choices_count"),
        ({"choices": ["A) a", "b"]}, 400, "choices_mixed"),
        ({"choices": ["A) ", "B) b"]}, 400, "choice_empty"),
        ({"question": ""}, 400, "invalid_field"),
        ({"domain": "nope"}, 404, "unknown_domain"),
        ({"model": "nope"}, 404, "unknown_served_name"),
        ({"model": "base"}, 400, "no_mcq"),
        ({"odd": 1}, 400, "invalid_field"),
        ({"question": "a" * 3000}, 400, "context_length_exceeded"),
    ],
)
def test_bad_items_get_a_sentence(stack: Stack, body: dict[str, object], status: int, code: str) -> None:
    answer = stack.use.post("/submit_mcq", json={"question": "q?", "choices": CHOICES, **body})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
