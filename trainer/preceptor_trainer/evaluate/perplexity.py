"""Perplexity of a served name on a text, by a sliding window: each token is scored once, with context before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import Sha256, sha256_bytes
from preceptor_contracts.frozen import read_text
from preceptor_contracts.report import Perplexity

from preceptor_trainer.concurrently import each
from preceptor_trainer.evaluate.patience import Patience

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW, STRIDE = 1024, 512
"""Tokens of a request, and tokens that the next one begins later."""


class Passage(NamedTuple):
    """A text to foretell."""

    name: str
    sha: Sha256
    ids: tuple[int, ...]
    scored_bytes: int
    """UTF-8 bytes of all tokens but the first, which has nothing before it."""


class Window(NamedTuple):
    """One request: tokens `begin` to `end`, of which those from `scored` on were not scored before."""

    begin: int
    scored: int
    end: int


def windows(tokens: int, window: int, stride: int) -> list[Window]:
    """Cuts a text of so many tokens; all but the first window's tokens have at least `window - stride` before them."""
    cut = []
    begin, scored = 0, 1
    while scored < tokens:
        end = min(begin + window, tokens)
        cut.append(Window(begin, scored, end))
        scored = end
        begin += stride
    return cut


def check_window(window: int, stride: int) -> None:
    """Refuses a stride that leaves tokens without context.

    Raises:
        InvalidInput: Not 1 <= stride < window.
    """
    if window < 2 or not 1 <= stride < window:
        raise InvalidInput(
            f"A window of {window} tokens cannot move by {stride}.",
            hint="Take a --stride from 1 to less than --window, e.g. --window 1024 --stride 512.",
        )


def read_passage(path: Path, tokenizer: PreTrainedTokenizerBase) -> Passage:
    """Reads and tokenises a text file.

    Raises:
        InvalidInput: It is missing, no UTF-8 text, or too short.
    """
    text = read_text(path)
    ids = tuple(int(token) for token in tokenizer(text, verbose=False)["input_ids"])
    if len(ids) < 2:
        raise InvalidInput(f"{path} holds {len(ids)} token(s): nothing to foretell.", hint="Name a longer text.")
    data = text.encode()
    first = str(tokenizer.decode(list(ids[:1]), skip_special_tokens=True))
    return Passage(path.name, sha256_bytes(data), ids, max(1, len(data) - len(first.encode())))


async def measure(
    patience: Patience,
    served: str,
    passage: Passage,
    *,
    window: int,
    stride: int,
    concurrency: int,
    tick: Callable[[int], None],
) -> Perplexity:
    """Asks how likely every token of a text is.

    Args:
        patience: Holds the gateway.
        served: Whom to ask; no domain prompt is added.
        passage: The text.
        window: Tokens of a request; one less than the engine's context at most.
        stride: Tokens that the next window begins later.
        concurrency: Requests at once.
        tick: Told how many windows are done.
    """
    done = 0

    async def one(cut: Window) -> float:
        nonlocal done
        ids = passage.ids[cut.begin : cut.end]
        (logprobs,) = await patience.until_answered(served, lambda: patience.gateway.score(served, [ids]))
        done += 1
        tick(done)
        # The first token of a window has no number, hence one less.
        return math.fsum(logprobs[cut.scored - cut.begin - 1 :])

    sums: Sequence[float] = await each(windows(len(passage.ids), window, stride), one, limit=concurrency)
    nats, tokens = max(0.0, -math.fsum(sums)), len(passage.ids) - 1
    return Perplexity(
        served=served,
        text=passage.name,
        text_sha=passage.sha,
        tokens=tokens,
        window=window,
        stride=stride,
        per_token=math.exp(min(700.0, nats / tokens)),
        bits_per_byte=nats / math.log(2) / passage.scored_bytes,
    )
