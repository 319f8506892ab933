"""Messages to token ids: the ids trained on must be those that the engine makes of the same messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from preceptor_contracts.base_models import split_revision
from preceptor_contracts.errors import InvalidInput, PrerequisiteError
from preceptor_contracts.files import sha256_bytes
from preceptor_contracts.mcq import LABELS
from preceptor_contracts.messages import Message
from preceptor_contracts.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenisedExample(NamedTuple):
    """A record as the base model sees it."""

    record_id: str
    prompt_ids: list[int]
    """With the generation prompt: the ids that the engine makes of the same messages."""
    answer_ids: list[int]
    """With the end-of-turn token; the only ids that carry loss."""

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt_ids) + len(self.answer_ids)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Loads the base model's tokenizer.

    Args:
        source: Folder or Hugging Face id.

    Raises:
        PrerequisiteError: It is not there.
        InvalidInput: It has no chat template or no end-of-turn token.
    """
    from transformers import AutoTokenizer

    from preceptor_trainer.quiet import silence_transformers

    silence_transformers()
    try:
        name, revision = split_revision(source)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise PrerequisiteError(
            f"Base model {source!r} is neither a folder of one nor a Hugging Face id that can be had: {first}",
            hint="Check BASE_MODEL; run `make setup` for the embedded one.",
        ) from error
    if not tokenizer.chat_template:
        raise InvalidInput(
            f"Base model {source!r} has no chat template.", hint="Take its instruction-tuned version as BASE_MODEL."
        )
    if tokenizer.eos_token_id is None:
        raise InvalidInput(f"The tokenizer of {source!r} has no end-of-turn token.", hint="Take another BASE_MODEL.")
    return tokenizer


def hub_revision(source: str) -> str:
    """The commit that a Hugging Face id's files are of here; empty for a folder, and where they are not here.

    Args:
        source: Folder or Hugging Face id.
    """
    from transformers.utils.hub import cached_file

    name, revision = split_revision(source)
    if Path(name).is_dir():
        return ""
    try:
        found = cached_file(name, "config.json", revision=revision)
    except (OSError, ValueError):
        return ""
    # The hub's cache: .../snapshots/<commit>/config.json
    return Path(found).parent.name if found else ""


def chat_template_sha(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hashes the chat template's text."""
    return sha256_bytes(str(tokenizer.chat_template).encode())


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...]) -> list[int]:
    """Renders messages and the generation prompt to ids, as the engine's chat endpoint does."""
    [ids] = _render(tokenizer, [messages], add_generation_prompt=True)
    return ids


def tokenise(tokenizer: PreTrainedTokenizerBase, example: Example, record_id: str) -> TokenisedExample:
    """Turns an example into prompt and answer ids.

    What the template puts after the end-of-turn token (a newline, say) is cut: the engine stops there, so loss on
    it would be wasted.

    Raises:
        InvalidInput: The template does not keep the prompt as a prefix, does not close the assistant's turn with the
            end-of-turn token, or the record's text holds that token.
    """
    [done] = tokenise_many(tokenizer, [(example, record_id)])
    if isinstance(done, InvalidInput):
        raise done
    return done


def tokenise_many(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[Example, str]]
) -> list[TokenisedExample | InvalidInput]:
    """Does what `tokenise` does for many examples at once, several times faster; errors stand in their places."""
    from jinja2 import TemplateError

    prompts = [example.prompt for example, _ in rows]
    wholes = [(*example.prompt, Message(role="assistant", content=example.answer)) for example, _ in rows]
    try:
        asked_ids = _render(tokenizer, prompts, add_generation_prompt=True)
        whole_ids = _render(tokenizer, wholes, add_generation_prompt=False)
    except TemplateError as error:
        # Some templates refuse some conversations, e.g. two user turns in a row.
        if len(rows) > 1:
            return [done for row in rows for done in tokenise_many(tokenizer, [row])]
        return [
            InvalidInput(
                f"Record {rows[0][1]!r}: the chat template refuses its turns: {error}.",
                code="template_refuses",
                hint="Correct the order of its turns, or take a base model whose chat template allows it.",
            )
        ]
    return [
        _split(tokenizer, prompt, whole, record_id)
        for prompt, whole, (_, record_id) in zip(asked_ids, whole_ids, rows, strict=True)
    ]


def _split(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], whole: list[int], record_id: str
) -> TokenisedExample | InvalidInput:
    if whole[: len(prompt)] != prompt:
        return InvalidInput(
            f"Record {record_id!r}: the chat template changes the prompt once an answer follows.",
            code="prompt_not_prefix",
            hint="Training would see what serving never sends; take a base model whose chat template keeps them equal.",
        )
    answer, stop = whole[len(prompt) :], tokenizer.eos_token_id
    ends = [position for position, token in enumerate(answer) if token == stop]
    if not ends:
        return InvalidInput(
            f"Record {record_id!r}: the chat template does not close the answer with {tokenizer.eos_token!r}.",
            hint="Take a base model whose end-of-turn token is its tokenizer's eos_token.",
        )
    if len(ends) > 1:
        return InvalidInput(
            f"Record {record_id!r}: the answer holds {tokenizer.eos_token!r}, which ends a turn.",
            hint="Take it out of the answer; the template adds it.",
        )
    return TokenisedExample(record_id, prompt, answer[: ends[0] + 1])


def label_token_ids(tokenizer: PreTrainedTokenizerBase, prompt: tuple[Message, ...]) -> dict[str, int]:
    """Finds the first token of each answer label, standing where the assistant's answer starts.

    Args:
        tokenizer: The base model's.
        prompt: Any prompt of the domain; the label's token depends on what stands before it.
    """
    return {label: tokenise(tokenizer, Example(prompt, label), f"label {label}").answer_ids[0] for label in LABELS}


def _render(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool
) -> list[list[int]]:
    # Without return_dict=False transformers 5 gives a BatchEncoding, whose iteration yields its keys.
    ids: Any = tokenizer.apply_chat_template(
        [
            [{"role": message.role, "content": message.content} for message in conversation]
            for conversation in conversations
        ],
        add_generation_prompt=add_generation_prompt,
        tokenize=True,
        return_dict=False,
    )
    return [[int(token) for token in row] for row in ids]
