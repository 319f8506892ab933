"""The chat tab: widgets and thin handlers around `conversation.converse`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from preceptor_ui.catalogue import Catalogue
from preceptor_ui.client import Gateway
from preceptor_ui.conversation import Progress, Turns, converse, unsent
from preceptor_ui.fragments import Notice, alert, answer_markdown, domain_header, literal_markdown, safety_banner

EXAMPLES_SHOWN = 6
MAX_QUESTION = 20_000
"""Characters; the gateway has the last word on a prompt's size in tokens."""
PLACEHOLDER = "Ask a question, or pick an example below."
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]

Updates = dict[Any, Any]
"""New values by widget: what Gradio takes from a handler."""


def bubbles(turns: Turns) -> list[gr.MessageDict]:
    """A conversation as the Chatbot widget takes it."""
    shown: list[gr.MessageDict] = []
    for turn in turns:
        shown.append({"role": "user", "content": literal_markdown(turn.question)})
        parts = [answer_markdown(turn.answer)] if turn.answer else []
        parts += [f"*{turn.note}*"] if turn.note else []
        if parts:
            shown.append({"role": "assistant", "content": "\n\n".join(parts)})
    return shown


class Stops:
    """The running answer of each browser session, so that Stop and a closed page can end it."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Event] = {}

    def begin(self, session: str) -> asyncio.Event:
        """Returns the event that ends this session's answer; ends one that is still running."""
        self.end(session)
        return self._running.setdefault(session, asyncio.Event())

    def end(self, session: str) -> None:
        """Ends this session's answer, if there is one."""
        if stop := self._running.pop(session, None):
            stop.set()

    def end_all(self) -> None:
        """Ends every running answer."""
        for session in list(self._running):
            self.end(session)

    def end_of(self, request: gr.Request) -> None:
        """Ends the answer of the session that a request belongs to."""
        self.end(request.session_hash or "")

    def forget(self, session: str, stop: asyncio.Event) -> None:
        """Drops an answer that came to its end."""
        if self._running.get(session) is stop:
            del self._running[session]


@dataclass(frozen=True)
class ChatTab:
    """The tab's widgets."""

    served: gr.Dropdown
    refresh: gr.Button
    about: gr.HTML
    problem: gr.HTML
    safety: gr.HTML
    conversation: gr.Chatbot
    examples: tuple[gr.Button, ...]
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    clear: gr.Button
    turns: gr.State

    def choose(self, catalogue: Catalogue, current: str | None) -> Updates:
        """Fills the choice of served names and what depends on it."""
        choices = catalogue.chat_choices()
        picked = catalogue.pick(choices, current)
        return {
            self.served: gr.update(choices=list(choices), value=picked),
            **self.introduce(catalogue, picked),
        }

    def introduce(self, catalogue: Catalogue, served: str | None) -> Updates:
        """Shows the chosen domain's title, disclaimer and examples."""
        domain = catalogue.domain_of(served)
        examples = domain.examples[:EXAMPLES_SHOWN] if domain else ()
        updates: Updates = {self.about: domain_header(catalogue, served)}
        for position, button in enumerate(self.examples):
            is_used = position < len(examples)
            updates[button] = gr.update(value=examples[position] if is_used else "", visible=is_used)
        return updates

    def report(self, notice: Notice | None) -> Updates:
        """Shows a failure, or takes the last one away."""
        return {self.problem: gr.update(value=alert(notice), visible=notice is not None)}

    def show(self, progress: Progress) -> Updates:
        """Shows where the conversation stands."""
        banner = safety_banner((progress.safety,))
        return {
            self.turns: progress.turns,
            self.conversation: bubbles(progress.turns),
            self.safety: gr.update(value=banner, visible=bool(banner)),
            self.send: gr.update(interactive=not progress.is_running),
            self.stop: gr.update(interactive=progress.is_running),
            self.clear: gr.update(interactive=not progress.is_running),
            **self.report(progress.notice),
        }

    @property
    def chosen(self) -> list[Any]:
        """The widgets that follow the choice of a served name."""
        return [self.about, *self.examples]

    @property
    def shown(self) -> list[Any]:
        """The widgets that follow the conversation."""
        return [self.turns, self.conversation, self.safety, self.problem, self.send, self.stop, self.clear]


def lay_out() -> ChatTab:
    """Lays the tab out; call it inside a tab."""
    with gr.Row(equal_height=False, elem_classes="pc-choose"):
        served = gr.Dropdown(
            choices=[],
            value=None,
            label="Who answers",
            filterable=False,
            scale=1,
            min_width=0,
            elem_id="chat-served",
        )
        # An open page outlives the UI's restart; its choice is then none that this process has offered.
        served.allow_custom_value = True
        refresh = gr.Button(
            "Refresh", size="md", scale=0, min_width=96, elem_classes="pc-quiet", elem_id="chat-refresh"
        )
    about = gr.HTML(elem_id="chat-about")
    safety = gr.HTML(visible=False, elem_id="chat-safety")
    conversation = gr.Chatbot(
        label="Conversation",
        show_label=False,
        height="max(260px, calc(100dvh - 580px))",
        min_height=240,
        layout="bubble",
        buttons=["copy"],
        feedback_options=None,
        placeholder=PLACEHOLDER,
        latex_delimiters=LATEX,
        allow_tags=False,
        allow_file_downloads=False,
        elem_id="chat-conversation",
    )
    problem = gr.HTML(visible=False, elem_id="chat-problem")
    with gr.Row(elem_classes="pc-examples"):
        examples = tuple(
            gr.Button("", visible=False, size="sm", scale=0, min_width=0, elem_classes="pc-chip")
            for _ in range(EXAMPLES_SHOWN)
        )
    question = gr.Textbox(
        label="Your question",
        placeholder="Type a question and press Enter",
        lines=1,
        max_lines=8,
        max_length=MAX_QUESTION,
        elem_id="chat-question",
    )
    with gr.Row(elem_classes="pc-actions"):
        send = gr.Button("Send", variant="primary", size="md", scale=2, min_width=96, elem_id="chat-send")
        stop = gr.Button("Stop", interactive=False, size="md", scale=1, min_width=80, elem_id="chat-stop")
        clear = gr.Button("Clear", size="md", scale=1, min_width=80, elem_classes="pc-quiet", elem_id="chat-clear")
    turns = gr.State(())
    return ChatTab(served, refresh, about, problem, safety, conversation, examples, question, send, stop, clear, turns)


def wire_up(tab: ChatTab, gateway: Gateway, stops: Stops, catalogue: gr.State) -> None:
    """Connects the widgets; call it inside the page's Blocks."""

    async def answer(
        turns: Turns, question: str, served: str | None, request: gr.Request
    ) -> AsyncGenerator[Updates, None]:
        session = request.session_hash or ""
        stop = stops.begin(session)
        is_taken = False
        try:
            async with aclosing(converse(gateway, turns, question or "", served, stop)) as steps:
                async for progress in steps:
                    updates = tab.show(progress)
                    if progress.is_running and not is_taken:
                        updates[tab.question] = ""
                        is_taken = True
                    yield updates
        finally:
            stops.forget(session, stop)

    def give_back(turns: Turns, draft: str) -> Any:
        question = unsent(turns, draft or "")
        # Writing the same draft back would undo what is being typed meanwhile.
        return gr.skip() if question is None else question

    asked = gr.on(
        [tab.send.click, tab.question.submit],
        answer,
        inputs=[tab.turns, tab.question, tab.served],
        outputs=[*tab.shown, tab.question],
        show_progress="hidden",
        trigger_mode="once",
        api_visibility="private",
    )
    asked.then(
        give_back,
        inputs=[tab.turns, tab.question],
        outputs=tab.question,
        show_progress="hidden",
        api_visibility="private",
    )
    tab.stop.click(stops.end_of, queue=False, show_progress="hidden", api_visibility="private")
    tab.clear.click(lambda: tab.show(Progress(())), outputs=tab.shown, show_progress="hidden", api_visibility="private")
    tab.served.input(
        tab.introduce,
        inputs=[catalogue, tab.served],
        outputs=tab.chosen,
        show_progress="hidden",
        api_visibility="private",
    )
    for button in tab.examples:
        button.click(
            lambda text: text,
            inputs=button,
            outputs=tab.question,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
