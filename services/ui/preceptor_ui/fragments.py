"""Small pieces of HTML and Markdown. Every text from outside is escaped here, and only here."""

from __future__ import annotations

import re
from html import escape
from typing import NamedTuple

from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_contracts.mcq import read_choices
from preceptor_contracts.served_names import RAW_BASE
from preceptor_contracts.wire import DomainView, McqAnswer

from preceptor_ui.catalogue import RAW_BASE_LABEL, Catalogue
from preceptor_ui.uncertainty import how_scored, how_sure, percent


class Notice(NamedTuple):
    """A failure as the reader sees it."""

    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: PreceptorError) -> Notice:
        """Takes message and hint of an expected failure."""
        return cls(error.message, error.hint)


HEADER = """<header class="pc-brand">
<h1>Preceptor</h1>
<p>Ask a domain's specialist, and compare it with the base model it was trained from.</p>
</header>"""


def alert(notice: Notice | None) -> str:
    """A failure as an alert; empty without one."""
    if notice is None:
        return ""
    hint = f'<span class="pc-hint">{escape(notice.hint)}</span>' if notice.hint else ""
    return f'<div class="pc-alert" role="alert"><strong>{escape(notice.message)}</strong>{hint}</div>'


def safety_banner(messages: tuple[str, ...]) -> str:
    """The messages of the safety rules that fired; empty without any."""
    shown = "".join(f"<p>{escape(message)}</p>" for message in messages if message)
    if not shown:
        return ""
    return f'<div class="pc-safety" role="alert" aria-label="Safety notice"><strong>Safety notice</strong>{shown}</div>'


def domain_header(catalogue: Catalogue, served: str | None) -> str:
    """Title, description and disclaimer of what is chosen."""
    domain = catalogue.domain_of(served)
    if domain is not None:
        return _header(domain.title, domain.description, domain.disclaimer)
    if served == RAW_BASE:
        return _header(RAW_BASE_LABEL, "No domain prompt and no adapter.", "No domain's safety rules apply here.")
    return _header(served, "", "") if served else ""


def _header(title: str, description: str, disclaimer: str) -> str:
    described = f"<p>{escape(description)}</p>" if description else ""
    disclaimed = f'<p class="pc-disclaimer">{escape(disclaimer)}</p>' if disclaimer else ""
    return f'<div class="pc-domain"><h2>{escape(title)}</h2>{disclaimed}{described}</div>'


def mcq_result(answer: McqAnswer, choices: tuple[str, ...], domain: DomainView | None) -> str:
    """The chosen option in words, a bar per option, and what the numbers mean."""
    texts = option_texts(choices)
    chosen = texts.get(answer.answer, answer.choice)
    bars = "".join(
        _bar(label, texts.get(label, ""), share, is_chosen=label == answer.answer)
        for label, share in answer.probabilities.items()
    )
    adapter = f"adapter {answer.adapter}" if answer.adapter else "no adapter"
    disclaimer = answer.disclaimer or (domain.disclaimer if domain else "")
    disclaimed = f'<p class="pc-disclaimer">{escape(disclaimer)}</p>' if disclaimer else ""
    return (
        '<section class="pc-result" aria-label="Result">'
        f'<h3><span class="pc-label">{escape(answer.answer)}</span> {escape(chosen)}</h3>'
        f'<p class="pc-sure">{escape(how_sure(answer))}</p>'
        f'<ul class="pc-bars" aria-label="Probability of each option">{bars}</ul>'
        f'<p class="pc-scored">{escape(how_scored(answer))}</p>'
        f'<p class="pc-scored">Answered by {escape(answer.served)} ({escape(adapter)}).</p>'
        f"{disclaimed}</section>"
    )


def option_texts(choices: tuple[str, ...]) -> dict[str, str]:
    """Maps labels to the options' texts; empty where the options cannot be read."""
    try:
        return {choice.label: choice.text for choice in read_choices(choices)}
    except InvalidInput:
        return {}


def _bar(label: str, text: str, share: float, *, is_chosen: bool) -> str:
    chosen = ' class="pc-chosen"' if is_chosen else ""
    return (
        f'<li{chosen}><span class="pc-option"><b>{escape(label)}</b> {escape(text)}</span>'
        f'<span class="pc-share">{percent(share)}</span>'
        f'<span class="pc-track" aria-hidden="true"><i style="width:{share * 100:.1f}%"></i></span></li>'
    )


# Fenced blocks (also one still being streamed) and inline code, which Markdown shows as they are.
_CODE = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`)", re.DOTALL)
_INLINE = re.compile(r"[\\`*_\[\]<&~$|]")
# What begins a heading, a quotation or a list.
_LINE_START = re.compile(r"^(?P<number>\d*)(?P<mark>(?<=\d)[.)]|(?<!\d)[#>+=-])", re.MULTILINE)
_ENTITY = re.compile(r"&(?=#?\w+;)")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_INDENT = re.compile(r"^[ \t]+", re.MULTILINE)


def answer_markdown(text: str) -> str:
    """An answer's Markdown with HTML shown instead of obeyed, and images (requests off the machine) as links."""
    parts = _CODE.split(text)
    return "".join(part if index % 2 else _tame(part) for index, part in enumerate(parts))


def _tame(text: str) -> str:
    # Only what could begin a tag or an entity, so that a copied answer stays as it was written.
    text = _ENTITY.sub("&amp;", text)
    return _TAG.sub("&lt;", text).replace("![", "[")


def literal_markdown(text: str) -> str:
    """Markdown that shows a person's text letter by letter."""
    indented = _INDENT.sub(lambda match: "\u00a0" * len(match[0].expandtabs(4)), text)
    inline = _INLINE.sub(lambda match: _entity(match[0]), indented)
    return _LINE_START.sub(lambda match: match["number"] + _entity(match["mark"]), inline)


def _entity(character: str) -> str:
    return f"&#{ord(character)};"
