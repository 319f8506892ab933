from __future__ import annotations

import math
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_contracts.errors import InvalidInput
from preceptor_trainer.evaluate.patience import Patience
from preceptor_trainer.evaluate.perplexity import Passage, check_window, measure, read_passage, windows
from preceptor_trainer.gateway import Gateway, GatewayFailure
from preceptor_trainer.tokens import load_tokenizer

from tests.unit.trainer.fixtures import FakeGateway

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries


@given(st.integers(2, 400), st.integers(2, 60).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size - 1))))
def test_every_token_but_the_first_is_scored_once_with_the_context_that_was_promised(
    tokens: int, shape: tuple[int, int]
) -> None:
    window, stride = shape
    scored: list[int] = []
    for cut in windows(tokens, window, stride):
        assert cut.end - cut.begin <= window
        for at in range(cut.scored, cut.end):
            assert at - cut.begin >= min(at, window - stride)
            scored.append(at)
    assert scored == list(range(1, tokens))


def _by_position(request: httpx.Request) -> httpx.Response:
    """Gives a token the more, the more context it has: so a wrong slice would show."""
    import json

    choices = []
    for index, ids in enumerate(json.loads(request.content)["prompt"]):
        entries = [None, *({str(token): {"logprob": -1 / at}} for at, token in enumerate(ids) if at)]
        choices.append({"index": index, "prompt_logprobs": entries})
    return httpx.Response(200, json={"choices": choices})


async def test_perplexity_is_the_mean_over_tokens_by_their_own_windows() -> None:
    passage = Passage("t.txt", "0" * 64, tuple(range(10)), 30)
    async with Gateway("http://g", "k", transport=httpx.MockTransport(_by_position)) as gateway:
        patience = Patience(gateway, 0, print, go_on="")
        found = await measure(patience, "base", passage, window=6, stride=3, concurrency=2, tick=lambda done: None)
    # Worked by hand: 0..6 scores 1..5, 3..9 scores 6..8 with 3 to 5 before them, 6..10 scores 9 with 3 before it.
    nats = sum(1 / at for at in (1, 2, 3, 4, 5)) + sum(1 / at for at in (3, 4, 5)) + 1 / 3
    assert found.tokens == 9
    assert found.per_token == pytest.approx(math.exp(nats / 9))
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 30)


async def test_a_token_without_a_number_is_a_failure_and_no_perplexity() -> None:
    bodies = [
        {"choices": []},
        {"choices": [{"index": 0, "prompt_logprobs": [None]}]},
        {"choices": [{"index": 0, "prompt_logprobs": [None, {"9": {"logprob": -1.0}}]}]},
        {"choices": [{"index": 0, "prompt_logprobs": None}]},
        {"choices": [{"index": 0, "prompt_logprobs": [None, {"2": {"logprob": None}}]}]},
    ]
    for body in bodies:
        transport = httpx.MockTransport(lambda request, body=body: httpx.Response(200, json=body))
        async with Gateway("http://g", "k", transport=transport) as gateway:
            with pytest.raises(GatewayFailure):
                await gateway.score("base", [[1, 2]])


def test_a_text_is_read_with_its_bytes(gateway: FakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("which plant is gr\u00fcn", encoding="utf-8")
    passage = read_passage(path, load_tokenizer(gateway.settings.base_model))
    assert passage.name == "t.txt"
    assert 0 < passage.scored_bytes < len(path.read_bytes())


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "0 token"), (b"\xff\xfe\x00\x81", "UTF-8"), (b"a", "1 token"), (None, "does not exist")]
)
def test_a_text_that_cannot_be_foretold_is_refused(
    gateway: FakeGateway, tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=says):
        read_passage(path, load_tokenizer(gateway.settings.base_model))


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (8, 8), (8, 0), (8, -1), (0, 0)])
def test_a_stride_that_leaves_no_context_is_refused(window: int, stride: int) -> None:
    with pytest.raises(InvalidInput, match="cannot move"):
        check_window(window, stride)
