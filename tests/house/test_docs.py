import csv
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from preceptor_contracts.domains import Domain, McqLayout, SafetyRule, load_domain
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import Manifest
from preceptor_contracts.records import QUESTIONS, RECORDS, PromptCompletionRecord
from preceptor_contracts.report import Report
from preceptor_contracts.wire import McqAnswer, McqRequest, ProblemBody
from preceptor_contracts.wire_generate import (
    GenerateBatchAnswer,
    GenerateBatchRequest,
    GenerateFailure,
    GenerateResult,
)
from preceptor_contracts.wire_mcq import (
    McqAsked,
    McqFailure,
    McqListAnswer,
    McqListRequest,
    McqResult,
    OptionDetail,
)
from preceptor_engine.settings import EngineSettings
from preceptor_gateway.app import create_app
from preceptor_gateway.client_fields import REFUSED
from preceptor_gateway.metrics import Metrics
from preceptor_gateway.settings import GatewaySettings
from preceptor_gateway.store import AliasFile
from preceptor_trainer.cli import app
from preceptor_trainer.prepare.leaks import find_leaks
from preceptor_trainer.recipes import Recipe
from preceptor_trainer.settings import TrainerSettings
from preceptor_ui.settings import Settings as UiSettings
from pydantic import SecretStr, TypeAdapter

from tests.house.test_files import make_targets
from tests.house.test_settings import CLASSES, NOT_IN_THE_FILE, example, in_compose, load_script, variables
from tests.house.tree import ROOT, shown

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
OUTLINE = ["What it is", "How to do it", "The format", "What goes wrong", "Why it is so"]
NOUNS = [
    "adapters",
    "configuration",
    "domains",
    "evaluation",
    "export",
    "gateway",
    "generate",
    "keys",
    "monitoring",
    "multiple-choice",
    "operations",
    "recipes",
    "runs-and-reports",
]
# Read by set-up before anything is installed, so it is in no settings class.
SETUP_ONLY = {"TORCH_INDEX"}
COMPOSES_OWN = {"COMPOSE_FILE", "COMPOSE_PROFILES"}
KINDS = {"mcq", "sql", "exact", "keypoints", "judge"}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=shown)


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def code(page: Path) -> list[str]:
    """Code blocks, and code in the text."""
    return re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)


def rows(page: Path) -> list[list[str]]:
    """Rows of all tables."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def in_first_cells(page: Path) -> set[str]:
    """What stands as code in the first cells of tables."""
    return {name for row in rows(page) for name in re.findall(r"`([^`]+)`", row[0])}


def anchors(page: Path) -> set[str]:
    """Headings as GitHub links them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pages_were_found() -> None:
    assert len(PAGES) >= len(NOUNS) + 2


@EVERY_PAGE
def test_a_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@EVERY_PAGE
def test_a_command_exists(page: Path) -> None:
    trainer = {command.callback.__name__ for command in app.registered_commands if command.callback}
    known = {
        "make": set(make_targets()),
        "preceptor-trainer": trainer | {str(group.name) for group in app.registered_groups},
        "preceptor-engine": {"serve", "materialise", "show"},
        "preceptor-gateway": {"keys"},
    }
    for program, commands in known.items():
        pattern = rf"(?:^|[`\s;&/]){program} ([a-z][a-z0-9-]*)"
        assert {name for piece in code(page) for name in re.findall(pattern, piece)} <= commands, program


@EVERY_PAGE
def test_a_shell_block_can_be_read(page: Path) -> None:
    for block in blocks(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    assert [
        page.name for page in sorted(DOCS.glob("*.md")) if page.name != "README.md" and page.name not in index
    ] == []


@pytest.mark.parametrize("name", NOUNS)
def test_a_page_has_the_outline(name: str) -> None:
    assert re.findall(r"^## (.+)$", (DOCS / f"{name}.md").read_text(), re.MULTILINE) == OUTLINE


def test_configuration_names_every_setting_and_no_other() -> None:
    text = (DOCS / "configuration.md").read_text()
    read = {name for settings in CLASSES for name in variables(settings)} | set(in_compose())
    assert {row[0].strip("`") for row in rows(DOCS / "configuration.md") if row[0].startswith("`")} == read
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", text))
    assert named <= read | SETUP_ONLY | COMPOSES_OWN
    assert [name for name in sorted(SETUP_ONLY) if name not in (ROOT / "scripts/setup.py").read_text()] == []


def test_configuration_shows_the_defaults_of_the_example() -> None:
    shown_defaults = {row[0].strip("`"): row[1] for row in rows(DOCS / "configuration.md") if row[0].startswith("`")}
    expected = {name: f"`{value}`" if value else "empty" for name, value in example().items()}
    assert shown_defaults == {**expected, **dict.fromkeys(NOT_IN_THE_FILE, "empty")}


def test_configuration_says_who_reads_a_setting() -> None:
    owners = dict(zip(CLASSES, ("engine", "gateway", "trainer", "UI", "demo"), strict=True))
    assert list(owners)[:4] == [EngineSettings, GatewaySettings, TrainerSettings, UiSettings]
    expected: dict[str, set[str]] = {}
    for settings, owner in owners.items():
        for name in variables(settings):
            expected.setdefault(name, set()).add(owner)
    for name in set(in_compose()) - set(expected):
        expected[name] = {"Compose"}
    said = {
        row[0].strip("`"): set(row[2].split(", ")) for row in rows(DOCS / "configuration.md") if row[0].startswith("`")
    }
    assert said == expected


def test_the_gateway_page_names_every_route_and_no_other() -> None:
    keys = {"api_key": SecretStr("a-key"), "admin_key": SecretStr("another-key")}
    paths = create_app(GatewaySettings.model_validate(keys)).api.openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    said = {name for name in in_first_cells(DOCS / "gateway.md") if re.match(r"[A-Z]+ /", name)}
    assert said == served


def test_the_gateway_page_names_every_error_code() -> None:
    sources = [*(ROOT / "services/gateway").rglob("*.py"), ROOT / "packages/contracts/preceptor_contracts/mcq.py"]
    codes = {code for source in sources for code in re.findall(r'\bcode="([a-z_]+)"', source.read_text())}
    text = (DOCS / "gateway.md").read_text()
    assert len(codes) >= 30
    assert [code for code in sorted(codes) if f"`{code}`" not in text] == []


def test_the_gateway_page_names_refused_fields() -> None:
    text = (DOCS / "gateway.md").read_text()
    assert [name for name in REFUSED if f"`{name}`" not in text] == []


def test_the_monitoring_page_names_every_series_and_alert_and_no_other() -> None:
    metrics = Metrics()
    metrics.watch_aliases(dict)
    families = list(metrics.registry.collect())
    series = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    said = in_first_cells(DOCS / "monitoring.md")
    assert {name for name in said if name.startswith("preceptor_")} == series
    rules = yaml.safe_load((ROOT / "services/monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    assert {name for name in said if name.startswith("Preceptor")} == {rule["alert"] for rule in rules}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("domains", Domain),
        ("domains", McqLayout),
        ("domains", SafetyRule),
        ("recipes", Recipe),
        ("runs-and-reports", Report),
        ("adapters", Manifest),
        ("gateway", GenerateBatchRequest),
        ("gateway", GenerateBatchAnswer),
        ("gateway", GenerateResult),
        ("gateway", GenerateFailure),
        ("multiple-choice", McqRequest),
        ("multiple-choice", McqAnswer),
        ("multiple-choice", McqListRequest),
        ("multiple-choice", McqAsked),
        ("multiple-choice", McqListAnswer),
        ("multiple-choice", McqResult),
        ("multiple-choice", McqFailure),
        ("multiple-choice", OptionDetail),
    ],
)
def test_a_page_names_every_field(name: str, kind: type[Frozen]) -> None:
    assert set(kind.model_fields) - in_first_cells(DOCS / f"{name}.md") == set()


def test_example_files_are_valid() -> None:
    (domain,) = blocks(DOCS / "domains.md", "yaml")
    Domain.model_validate(yaml.safe_load(domain))
    records, questions = blocks(DOCS / "domains.md", "json")
    assert {RECORDS.validate_python(one).kind for one in json.loads(records)} == {
        "chat",
        "instruction",
        "prompt_completion",
        "mcq",
    }
    assert {QUESTIONS.validate_python(one).kind for one in json.loads(questions)} == KINDS
    (questions,) = blocks(DOCS / "evaluation.md", "json")
    assert {QUESTIONS.validate_python(one).kind for one in json.loads(questions)} <= KINDS
    (recipe,) = blocks(DOCS / "recipes.md", "yaml")
    Recipe.model_validate(yaml.safe_load(recipe))


def test_the_walk_through_shows_what_its_example_holds() -> None:
    folder = load_domain(DOCS / "examples/library")
    text = (DOCS / "training.md").read_text()
    with (folder.path / "faq.csv").open(newline="") as stream:
        rows_of_csv = list(csv.DictReader(stream))
    assert len(rows_of_csv) >= 20
    assert set(rows_of_csv[0]) == {"question", "answer", "topic"}
    (shown_rows,) = blocks(DOCS / "training.md", "csv")
    assert (folder.path / "faq.csv").read_text().startswith(shown_rows)
    exam = [QUESTIONS.validate_json(line) for line in folder.exam.read_text().splitlines()]
    assert len(exam) >= 20
    assert {one.kind for one in exam} == {folder.domain.grader}
    records = [
        PromptCompletionRecord(
            kind="prompt_completion",
            id=str(number),
            topic=row["topic"],
            prompt=row["question"],
            completion=row["answer"],
        )
        for number, row in enumerate(rows_of_csv)
    ]
    assert find_leaks(records, exam) == []
    # The page breaks the line in two.
    ((question, points),) = re.findall(r'^(\{"id".*)\n (.*\})$', text, re.MULTILINE)
    assert QUESTIONS.validate_json(f"{question}{points}") in exam


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("runs-and-reports", Report),
        ("adapters", AliasFile),
        ("gateway", ProblemBody),
        ("multiple-choice", McqListAnswer),
    ],
)
def test_an_example_answer_is_valid(name: str, kind: type[Frozen]) -> None:
    (block,) = blocks(DOCS / f"{name}.md", "json")
    TypeAdapter(kind).validate_json(block)


def test_the_api_page_is_what_make_docs_writes() -> None:
    script = load_script("api_docs")
    assert (DOCS / "api.md").read_text() == script.render(script.document()), "Run `make docs`."


def test_every_field_of_the_api_says_what_it_means() -> None:
    shapes = load_script("api_docs").document()["components"]["schemas"]
    assert len(shapes) >= 40
    assert [
        f"{name}.{field}"
        for name, shape in shapes.items()
        for field, schema in shape.get("properties", {}).items()
        if not schema.get("description")
    ] == []
