"""The multiple-choice tab: reads the form, asks the gateway, shows a bar per option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import gradio as gr
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.mcq import MAX_OPTIONS
from preceptor_contracts.wire import McqAnswer, McqRequest

from preceptor_ui.catalogue import Catalogue
from preceptor_ui.chat import Updates
from preceptor_ui.client import Gateway
from preceptor_ui.fragments import Notice, alert, domain_header, mcq_result, safety_banner

MAX_PASSAGE = 60_000
"""Characters; the gateway has the last word on a prompt's size in tokens."""

EXAMPLE_PASSAGE = (
    "In temperate countries pollen follows the calendar. Trees flower first and fill the air in spring. Grasses take "
    "over in early summer, when most people with hay fever suffer. Weeds such as ragweed close the year in late summer."
)
EXAMPLE_QUESTION = "According to the passage, which pollen troubles people most in early summer?"
EXAMPLE_OPTIONS = "Tree pollen\nGrass pollen\nRagweed pollen\nNo pollen at all"
EMPTY_RESULT = '<p class="pc-empty">The answer appears here, with a probability for every option.</p>'


class Answerer(Protocol):
    """The one thing that this module needs of the gateway's client."""

    async def answer(self, request: McqRequest) -> McqAnswer:
        """Answers one item."""


@dataclass(frozen=True)
class McqView:
    """What one press of Answer shows."""

    result: str = EMPTY_RESULT
    safety: str = ""
    notice: Notice | None = None


def read_form(served: str | None, passage: str, question: str, options: str) -> McqRequest:
    """Reads the form; all that is not emptiness is for the gateway to judge.

    Raises:
        InvalidInput: A field that must be filled is empty.
    """
    lines = tuple(line.strip() for line in options.splitlines() if line.strip())
    if not served:
        raise InvalidInput("Nothing is chosen to answer.", hint="Press Refresh, then choose who answers.")
    if not question.strip():
        raise InvalidInput("The question is empty.", hint="Type a question, or load the example.")
    if not lines:
        raise InvalidInput("There are no options.", hint=f"Write 2 to {MAX_OPTIONS} options, one per line.")
    return McqRequest(text=passage.strip(), question=question, choices=lines, model=served)


async def ask(
    gateway: Answerer, catalogue: Catalogue, served: str | None, passage: str, question: str, options: str
) -> McqView:
    """Answers the item of the form; every failure becomes a notice."""
    try:
        request = read_form(served, passage, question, options)
        answer = await gateway.answer(request)
    except PreceptorError as error:
        return McqView(notice=Notice.of(error))
    result = mcq_result(answer, request.choices, catalogue.domain_of(served))
    return McqView(result=result, safety=safety_banner(answer.safety))


@dataclass(frozen=True)
class McqTab:
    """The tab's widgets."""

    served: gr.Dropdown
    refresh: gr.Button
    about: gr.HTML
    problem: gr.HTML
    passage: gr.Textbox
    question: gr.Textbox
    options: gr.Textbox
    answer: gr.Button
    example: gr.Button
    safety: gr.HTML
    result: gr.HTML

    def choose(self, catalogue: Catalogue, current: str | None) -> Updates:
        """Fills the choice of served names and what depends on it."""
        choices = catalogue.mcq_choices()
        picked = catalogue.pick(choices, current)
        return {
            self.served: gr.update(choices=list(choices), value=picked),
            self.about: domain_header(catalogue, picked),
        }

    def report(self, notice: Notice | None) -> Updates:
        """Shows a failure, or takes the last one away."""
        return {self.problem: gr.update(value=alert(notice), visible=notice is not None)}

    def show(self, view: McqView) -> Updates:
        """Shows an answer or a failure."""
        return {
            self.result: view.result,
            self.safety: gr.update(value=view.safety, visible=bool(view.safety)),
            **self.report(view.notice),
        }

    @property
    def shown(self) -> list[Any]:
        """The widgets that follow an answer."""
        return [self.result, self.safety, self.problem]


def lay_out() -> McqTab:
    """Lays the tab out; call it inside a tab."""
    with gr.Row(equal_height=False, elem_classes="pc-choose"):
        served = gr.Dropdown(
            choices=[],
            value=None,
            label="Who answers",
            filterable=False,
            scale=1,
            min_width=0,
            elem_id="mcq-served",
        )
        # As in `chat`: an open page outlives the UI's restart.
        served.allow_custom_value = True
        refresh = gr.Button("Refresh", size="md", scale=0, min_width=96, elem_classes="pc-quiet", elem_id="mcq-refresh")
    about = gr.HTML(elem_id="mcq-about")
    with gr.Row(elem_classes="pc-columns"):
        with gr.Column(min_width=300):
            passage = gr.Textbox(
                label="Passage (optional)",
                placeholder="Text that the question is about",
                lines=4,
                max_lines=12,
                max_length=MAX_PASSAGE,
                elem_id="mcq-passage",
            )
            question = gr.Textbox(
                label="Question", lines=2, max_lines=6, max_length=MAX_PASSAGE, elem_id="mcq-question"
            )
            options = gr.Textbox(
                label="Options, one per line",
                placeholder="First option\nSecond option",
                info=f"2 to {MAX_OPTIONS}; labels such as 'A)' are optional.",
                lines=4,
                max_lines=12,
                max_length=MAX_PASSAGE,
                elem_id="mcq-options",
            )
            with gr.Row(elem_classes="pc-actions"):
                answer = gr.Button("Answer", variant="primary", size="md", scale=2, min_width=96, elem_id="mcq-answer")
                example = gr.Button(
                    "Load example", size="md", scale=1, min_width=120, elem_classes="pc-quiet", elem_id="mcq-example"
                )
        with gr.Column(min_width=300):
            problem = gr.HTML(visible=False, elem_id="mcq-problem")
            safety = gr.HTML(visible=False, elem_id="mcq-safety")
            result = gr.HTML(EMPTY_RESULT, elem_id="mcq-result", min_height=120)
    return McqTab(served, refresh, about, problem, passage, question, options, answer, example, safety, result)


def wire_up(tab: McqTab, gateway: Gateway, catalogue: gr.State) -> None:
    """Connects the widgets; call it inside the page's Blocks."""

    async def answer(known: Catalogue, served: str | None, passage: str, question: str, options: str) -> Updates:
        return tab.show(await ask(gateway, known, served, passage or "", question or "", options or ""))

    tab.answer.click(
        answer,
        inputs=[catalogue, tab.served, tab.passage, tab.question, tab.options],
        outputs=tab.shown,
        show_progress_on=tab.result,
        trigger_mode="once",
        api_visibility="private",
    )
    tab.example.click(
        lambda: (EXAMPLE_PASSAGE, EXAMPLE_QUESTION, EXAMPLE_OPTIONS),
        outputs=[tab.passage, tab.question, tab.options],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
    tab.served.input(
        domain_header,
        inputs=[catalogue, tab.served],
        outputs=tab.about,
        show_progress="hidden",
        api_visibility="private",
    )
