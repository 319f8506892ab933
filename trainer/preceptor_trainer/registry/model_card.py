"""The model card beside weights: written from the manifest and the reports alone, as Hugging Face reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import yaml
from preceptor_contracts.domains import Domain, find_domain
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.files import write_atomic
from preceptor_contracts.frozen import read_json
from preceptor_contracts.manifest import AdapterFolder, DatasetSummary, Manifest, read_adapter
from preceptor_contracts.prompts import system_text
from preceptor_contracts.report import Comparison, Report, Side, Verdict

from preceptor_trainer.settings import TrainerSettings

CARD = "CARD.md"
"""Under `reports/`, where the manifest's hashes do not reach: the card as it is after the newest exam."""
_FEW = 100
"""Exam questions below which a card warns of the width of its interval."""

_NOT_EXAMINED = (
    "It was the adapter on its base model that sat this exam, as served. These weights were compared with it on one "
    "prompt, the canary, and rounding may change other answers."
)


class Form(NamedTuple):
    """What the weights are that a card lies beside."""

    library: str
    """Hugging Face's `library_name`."""
    what: str
    how: str
    """How to ask it; takes `{name}`, `{domain}`, `{adapter}`."""
    name: str = ""
    precision: str = ""


ADAPTER = Form(
    "peft",
    "a LoRA adapter",
    "Ask it as `{domain}:{adapter}` through Preceptor's gateway, which adds the system message that it was trained "
    "with. Elsewhere load it with PEFT on exactly the base model named above, and send the system message below.",
)
MERGED = Form(
    "transformers",
    "its base model with the adapter merged in",
    "Load the folder with transformers or vLLM, or set `BASE_MODEL` to it. Nothing adds the system message here: send "
    "the one below.",
)
GGUF = Form(
    "gguf",
    "its base model with the adapter merged in, as GGUF",
    "`ollama create {domain} -f {name}.Modelfile`, or load it with llama.cpp. Without the Modelfile nothing adds the "
    "system message: send the one below.",
)


def card_of(settings: TrainerSettings, adapter: AdapterFolder, form: Form) -> str:
    """Writes the card of an adapter on disk, with its domain's words where that is here, and all its reports."""
    domain: Domain | None
    try:
        domain = find_domain(settings.domains_dir, adapter.manifest.domain).domain
    except InvalidInput:
        domain = None
    return model_card(adapter.manifest, domain, read_reports(adapter), form)


def keep_card(settings: TrainerSettings, name: str) -> None:
    """Writes the card with all exams so far into the adapter's `reports/`; the README beside the weights stays."""
    adapter = read_adapter(settings.adapters_dir / name)
    write_atomic(adapter.path / "reports" / CARD, card_of(settings, adapter, ADAPTER))


def read_reports(adapter: AdapterFolder) -> list[Report]:
    """Reads an adapter's reports, oldest first; one that cannot be read is left out."""
    found = []
    for path in (adapter.path / "reports").glob("*.json"):
        try:
            found.append(read_json(path, Report))
        except InvalidInput:
            continue
    return sorted(found, key=lambda report: report.created_at)


def model_card(manifest: Manifest, domain: Domain | None, reports: Sequence[Report], form: Form) -> str:
    """Tells what the weights are, what they rest on, what was measured, and where not to trust them.

    Args:
        manifest: The adapter's.
        domain: For its words; its prompt only where it is still the one that was trained on.
        reports: Oldest first; the newest one is told in full.
        form: What the card lies beside.
    """
    name = form.name or manifest.adapter
    precision = f" in {form.precision}" if form.precision else ""
    about = f"{domain.title}: {domain.description}" if domain else f"A specialist for domain `{manifest.domain}`."
    how = form.how.format(name=name, domain=manifest.domain, adapter=manifest.adapter)
    system = system_message(manifest, domain)
    blocks = [
        f"---\n{_front_matter(manifest, reports, form)}---",
        f"# {name}",
        about,
        f"> {domain.disclaimer}" if domain and domain.disclaimer else "",
        f"This is adapter `{manifest.adapter}`: {form.what}{precision}.",
        _facts(manifest),
        "## Training data",
        _data(manifest.dataset),
        "## Exam",
        _exam(reports),
        "" if form is ADAPTER or not reports else _NOT_EXAMINED,
        "## Limits of use",
        _limits(manifest, domain, reports),
        "## How to ask it",
        how,
        f"````text\n{system}\n````" if system else "",
        "## How to verify it",
        _verification(manifest),
    ]
    return "\n\n".join(block.strip() for block in blocks if block) + "\n"


def system_message(manifest: Manifest, domain: Domain | None) -> str:
    """The system message that was trained with; empty where there was none."""
    if domain is not None and domain.prompt_sha == manifest.prompt_sha:
        return system_text(domain)
    # A manifest holds no prompt, but its canary's messages are one, rendered.
    first = manifest.canary.messages[0]
    return first.content if first.role == "system" else ""


def leak_line(dataset: DatasetSummary) -> str:
    """Says what was found of the exam in the training data."""
    leaks = dataset.leaks
    if leaks is None:
        return "no exam question among the records: a record that repeats one is refused"
    pairs = ", ".join(f"`{pair.record}` ~ `{pair.question}`" for pair in leaks.first)
    return (
        f"**{leaks.questions} exam questions were trained on** ({leaks.records} records; {pairs}), which somebody "
        "allowed: what they score measures memory"
    )


def scored(side: Side) -> str:
    """Writes a side's accuracy with Wilson's interval."""
    low, high = side.ci95
    return f"{side.accuracy:.3f} ({low:.3f} to {high:.3f})"


def _front_matter(manifest: Manifest, reports: Sequence[Report], form: Form) -> str:
    front: dict[str, object] = {
        "base_model": manifest.base_model.id,
        "base_model_relation": "adapter" if form is ADAPTER else "merge",
        "library_name": form.library,
        "pipeline_tag": "text-generation",
        "tags": ["lora", "preceptor", manifest.domain],
    }
    if reports:
        report = reports[-1]
        metric = {"type": "accuracy", "name": f"accuracy on {report.n} questions", "value": report.adapter.accuracy}
        dataset = {"name": f"{report.domain} exam", "type": f"preceptor-{report.domain}", "revision": report.exam_sha}
        result = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": [metric]}
        front["model-index"] = [{"name": manifest.adapter, "results": [result]}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _facts(manifest: Manifest) -> str:
    recipe, train = manifest.recipe, manifest.train
    return _table(
        {
            "base model": f"`{manifest.base_model.id}`, revision `{manifest.base_model.revision}`",
            "recipe": f"`{recipe.get('name')}`: {recipe.get('method')}, rank {manifest.rank}, {recipe.get('dtype')}, "
            f"seed {manifest.seed}",
            "training": f"{train.steps} steps, {train.tokens} tokens, loss {train.first_loss:.3f} to "
            f"{train.final_loss:.3f}, {train.trainable_parameters} trained parameters",
            "prompt parity": f"{manifest.parity.matched} of {manifest.parity.samples} prompts have the same token ids "
            "in training and serving",
            "made": f"{manifest.created_at:%Y-%m-%d %H:%M} UTC by run `{manifest.run_id}`"
            + (f", commit `{manifest.git_rev}`" if manifest.git_rev else ""),
        }
    )


def _data(dataset: DatasetSummary) -> str:
    topics = ", ".join(f"{topic} ({count})" for topic, count in dataset.topics.items())
    return _table(
        {
            "records": f"{dataset.records}, {dataset.tokens} tokens",
            "SHA-256": f"`{dataset.sha256}`",
            "topics": topics,
            "duplicates removed": f"{dataset.duplicates_removed} exact, {dataset.near_duplicates_removed} near",
            "contradictions kept": str(dataset.contradictions),
            "leaks": leak_line(dataset),
        }
    )


def _exam(reports: Sequence[Report]) -> str:
    if not reports:
        return (
            "None was sat when this card was written. An adapter is published first and examined as served after; "
            f"then `reports/{CARD}` holds the result.\n"
        )
    report = reports[-1]
    lines = [
        f"Verdict: **{report.verdict.value}**. {report.reason}\n",
        "| questions | n | base model | adapter | difference | McNemar's p |",
        "|---|---|---|---|---|---|",
        _row("all", report),
        *(_row(f"group {name}", part) for name, part in report.groups.items()),
        "",
        "Accuracies with Wilson's 95 % interval; both sides were asked through the gateway, with the same prompts. "
        f"Exam `{report.exam_sha}`, {report.created_at:%Y-%m-%d}, {report.engine}.",
    ]
    if report.guard is not None:
        guard = report.guard
        lines.append(
            f"\nGeneral questions, without the domain's prompt (n = {guard.n}): base model {scored(guard.base)}, "
            f"adapter {scored(guard.adapter)}, McNemar's p {guard.mcnemar_p:.2g}. {guard.reason}\n"
        )
    if len(reports) > 1:
        lines.append(f"{len(reports)} exams were sat; this is the newest one. The verdict of each:")
        lines += [f"- {each.created_at:%Y-%m-%d %H:%M} UTC: {each.verdict.value}, n = {each.n}" for each in reports]
    return "\n".join(lines) + "\n"


def _limits(manifest: Manifest, domain: Domain | None, reports: Sequence[Report]) -> str:
    topics = ", ".join(manifest.dataset.topics)
    lines = [domain.disclaimer] if domain and domain.disclaimer else []
    lines += [
        f"It was trained on {manifest.dataset.records} records about: {topics}. Beside these topics it was not taught "
        "anything, and may answer worse than its base model.",
        "It states what it learned without a source and may be wrong in the same confident words as when it is right.",
    ]
    if not reports:
        lines.append("Nothing was measured yet: do not use it before its exam.")
    else:
        report = reports[-1]
        low, high = report.adapter.ci95
        lines.append(
            f"It was examined on {report.n} questions; for other questions like these its accuracy lies between "
            f"{low:.2f} and {high:.2f} with 95 % confidence."
            + (" So few questions leave a wide interval." if report.n < _FEW else "")
        )
        if report.verdict is not Verdict.BETTER:
            lines.append("It was **not** shown to be better than its base model.")
        if report.guard is not None and report.guard.forgot:
            lines.append("It forgot: it is worse than its base model at general questions.")
    if manifest.dataset.leaks is not None:
        lines.append("Exam questions were among its training data: its exam measures memory besides skill.")
    lines.append(
        f"It is a derivative of `{manifest.base_model.id}`: that base model's licence and its limits hold for it too. "
        "This card does not know them; look them up."
    )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _verification(manifest: Manifest) -> str:
    rows = "\n".join(f"| `{name}` | `{sha}` |" for name, sha in sorted(manifest.files.items()) if name != "README.md")
    canary = manifest.canary
    return (
        "The adapter's files, as the manifest `preceptor.json` lists them:\n\n"
        f"| file | SHA-256 |\n|---|---|\n{rows}\n\n"
        f"Its canary: the first token of the answer to one prompt differs from the base model's by "
        f"{canary.separation:.2f} nats on average over {len(canary.token_ids)} tokens. "
        "`preceptor-trainer adapters show` checks the files.\n"
    )


def _row(name: str, part: Comparison) -> str:
    return (
        f"| {name} | {part.n} | {scored(part.base)} | {scored(part.adapter)} | {part.difference:+.3f} | "
        f"{part.mcnemar_p:.2g} |"
    )


def _table(rows: dict[str, str]) -> str:
    # A topic is what a person wrote, and must not end a cell.
    cells = [f"| {name} | {' '.join(value.split()).replace('|', '&#124;')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *cells]) + "\n"
