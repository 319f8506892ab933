"""Chat messages as pure values."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from pydantic import Field, StringConstraints

from preceptor_contracts.frozen import Frozen

Role = Literal["system", "user", "assistant"]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""Text that says something: surrounding white space is dropped, empty is refused."""


class WireMessage(TypedDict):
    """A message as the OpenAI API and chat templates spell it."""

    role: str
    content: str


class Message(Frozen):
    """One turn of a conversation."""

    role: Role
    """Who says it."""
    content: Annotated[str, Field(min_length=1)]
    """What is said."""

    def wire(self) -> WireMessage:
        """Returns the OpenAI spelling."""
        return {"role": self.role, "content": self.content}


def wire(messages: tuple[Message, ...]) -> list[WireMessage]:
    """Spells a conversation for the OpenAI API or a chat template."""
    return [message.wire() for message in messages]
