"""An OpenAI-compatible endpoint that answers by script: one function a request, over real HTTP on a loopback port."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.serving import serve

Body = dict[str, Any]


class Completions:
    """What was asked, and what is answered."""

    def __init__(self, answer: Callable[[Body], Response]) -> None:
        self.answer = answer
        """May be replaced while it runs."""
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        """Ends in /v1."""

    async def __call__(self, request: Request) -> Response:
        """Answers one request."""
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        return self.answer(body)

    def prompts(self) -> list[str]:
        """The user's turn of every request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def completions(answer: Callable[[Body], Response]) -> Iterator[Completions]:
    """Runs the endpoint until the block is left."""
    kept = Completions(answer)
    with serve(Starlette(routes=[Route("/v1/chat/completions", kept.__call__, methods=["POST"])])) as url:
        kept.url = f"{url}/v1"
        yield kept


def records(*items: Body) -> Response:
    """An answer that holds these records."""
    return said(json.dumps({"records": items}))


def said(content: str | None, *, finish_reason: str = "stop", **message: Any) -> Response:
    """An answer with this text."""
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    return completion(choice)


def called(name: str, *items: Body) -> Response:
    """An answer that calls a tool with these records."""
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": json.dumps({"records": items})}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return completion({"index": 0, "finish_reason": "tool_calls", "message": message})


def completion(choice: Body) -> Response:
    """The envelope."""
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return JSONResponse(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "g", "choices": [choice], "usage": usage}
    )


def refused(status: int, message: str = "No.", **headers: str) -> Response:
    """An error in OpenAI's envelope."""
    return JSONResponse({"error": {"message": message, "type": "e", "code": "e"}}, status_code=status, headers=headers)
