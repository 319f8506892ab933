"""What can not fit the engine's context, found out before the engine is bothered. Pure functions.

Without a tokenizer only the certain can be refused; what is let through the engine counts exactly, and refuses with the
same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from preceptor_gateway.problems import BadRequest

MOST_CHARACTERS_PER_TOKEN = 128
"""No token is taken to cover more characters on average.

The embedded base model's longest vocabulary entry has 81 (a line feed and 80 spaces); the longest that is not one
repeated character has 25. 128 leaves room for larger vocabularies. The shipped domains' texts have about 3 characters a
token, so a text is refused here only when it is some forty times too long, or when `max_tokens` leaves no room. A bound
that real text could meet would also refuse tables and indented code that do fit.
"""


def characters_of(messages: Sequence[Mapping[str, object]]) -> int:
    """Characters that a chat's texts bring for certain; chat templates may drop white space around a text."""
    total = 0
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                total += len(text.strip())
    return total


def fewest_tokens(characters: int) -> int:
    """The least number of tokens that so many characters can be."""
    return -(-characters // MOST_CHARACTERS_PER_TOKEN)


def check_context(context_tokens: int, max_tokens: int | None, characters: int) -> None:
    """Refuses what can not fit for certain.

    Args:
        context_tokens: The engine's longest context, prompt and answer; 0 where it is not known.
        max_tokens: What the client asks for; None where it leaves that to the engine.
        characters: Length of the prompt's texts.

    Raises:
        BadRequest: Prompt and answer can not fit.
    """
    if context_tokens <= 0:
        return
    prompt = max(1, fewest_tokens(characters))
    answer = max_tokens or 1
    if prompt + answer <= context_tokens:
        return
    asked = f"{max_tokens} tokens of answer" if max_tokens else "an answer"
    raise BadRequest(
        f"The longest context is {context_tokens} tokens, and this request holds {characters} characters, which are at "
        f"least {prompt} tokens, and asks for {asked}.",
        code="context_length_exceeded",
        param="max_tokens" if answer >= context_tokens else "messages",
        hint="Lower max_tokens or shorten the messages.",
    )


def check_message_count(count: int, most: int) -> None:
    """Refuses conversations of more messages than the settings allow.

    Raises:
        BadRequest: There are too many.
    """
    if count > most:
        raise BadRequest(
            f"The request holds {count} messages.",
            code="too_many_messages",
            param="messages",
            hint=f"Send at most {most}; GATEWAY_MAX_MESSAGES sets it.",
        )
