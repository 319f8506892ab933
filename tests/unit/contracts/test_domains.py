"""Domains: what a wrong one says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from preceptor_contracts.domains import find_domain, load_domain, load_domains
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.prompts import explain_template

GOOD = """
name: clinic
title: Clinic
description: d
system: You are a clinic.
mcq: {scoring: options}
recipe: any
grader: mcq
"""


def write(root: Path, text: str, folder: str = "clinic") -> Path:
    path = root / folder
    path.mkdir(exist_ok=True)
    (path / "domain.yaml").write_text(text)
    return path


def test_good_domain_loads(tmp_path: Path) -> None:
    assert load_domain(write(tmp_path, GOOD)).domain.title == "Clinic"
    assert list(load_domains(tmp_path)) == ["clinic"]


def as_nobody(look: Callable[[], object]) -> str:
    """What a process without any rights is told; the suite itself may run as root, whom nothing is hidden from."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            told = repr(look())
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, encoding="utf-8") as answer:
        return answer.read()


def test_a_folder_of_an_impossible_name_is_not_passed_over_either(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "clinic copy")
    with pytest.raises(InvalidInput, match="is not its folder's name"):
        load_domains(tmp_path)


@pytest.mark.parametrize("closed", [".", "clinic"])
def test_a_folder_that_may_not_be_read_is_told_and_not_passed_over(closed: str) -> None:
    """As under a umask of 077, where containers run as another user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = Path(name)
        write(root, GOOD)
        (root / "lost+found").mkdir(mode=0o700)
        root.chmod(0o755)
        assert as_nobody(lambda: list(load_domains(root))) == "['clinic']"
        (root / closed).chmod(0o000)
        for look in (lambda: load_domains(root), lambda: find_domain(root, "clinic")):
            told = as_nobody(look)
            assert told.startswith("InvalidInput: ")
            assert "may not be read" in told
            assert "chmod -R a+rX" in told
        (root / closed).chmod(0o755)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("title: Clinic", "titel: Clinic", "titel: Extra inputs are not permitted"),
        ("title: Clinic", "title: ''", "title: String should have at least 1 character"),
        ("You are a clinic.", "'Hello {name}'", "unknown placeholder {name}"),
        ("You are a clinic.", "'A { brace'", "write a literal brace twice"),
        ("{scoring: options}", "{scoring: guess}", "mcq.scoring"),
        ("{scoring: options}", "{scoring: options, options: 'no placeholder'}", "placeholder {question} is missing"),
        ("{scoring: options}", "{scoring: options, explain: '{question}'}", "placeholder {answer} is missing"),
        ("{scoring: options}", "{scoring: options, explain: '{question}{answer}{x}'}", "unknown placeholder {x}"),
        ("grader: mcq", "grader: sql", "grader 'sql' needs `database`"),
        ("grader: mcq", "grader: mcq\nsafety: [{name: e, message: m, patterns: ['(']}]", "not a regular expression"),
        ("grader: mcq", "grader: [", "line"),
        ("name: clinic", "name: other", "is not its folder's name"),
    ],
)
def test_wrong_domain_names_file_and_field(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InvalidInput) as caught:
        load_domain(path)
    assert told in caught.value.message
    assert "domain.yaml" in caught.value.message


def test_unknown_domain_lists_the_known_ones(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(InvalidInput) as caught:
        find_domain(tmp_path, "nope")
    assert caught.value.code == "unknown_domain"
    assert "clinic" in caught.value.hint
    with pytest.raises(InvalidInput):
        find_domain(tmp_path, "../clinic")


def test_prompt_sha_follows_what_shapes_a_prompt_only(tmp_path: Path) -> None:
    first = load_domain(write(tmp_path, GOOD)).domain.prompt_sha
    retitled = load_domain(write(tmp_path, GOOD.replace("title: Clinic", "title: Other"))).domain.prompt_sha
    reworded = load_domain(write(tmp_path, GOOD.replace("a clinic", "the clinic"))).domain.prompt_sha
    assert first == retitled != reworded


def test_how_an_explanation_is_asked_shapes_no_trained_prompt(tmp_path: Path) -> None:
    first = load_domain(write(tmp_path, GOOD)).domain.prompt_sha
    explained = GOOD.replace("{scoring: options}", "{scoring: options, explain: '{question} {answer} Why?'}")
    domain = load_domain(write(tmp_path, explained)).domain
    assert domain.mcq is not None
    assert domain.mcq.explain == "{question} {answer} Why?"
    assert domain.prompt_sha == first


def test_a_domain_may_refuse_to_explain(tmp_path: Path) -> None:
    layout = load_domain(write(tmp_path, GOOD.replace("{scoring: options}", "{scoring: options, explain: null}")))
    assert layout.domain.mcq is not None
    assert layout.domain.mcq.explain is None
    with pytest.raises(InvalidInput, match="explains no answers"):
        explain_template(layout.domain.mcq, with_passage=False)


def test_a_field_that_adapters_know_nothing_of_leaves_their_sha_alone() -> None:
    # As of before `mcq.explain`: adapters trained then must stay servable.
    known = {
        "allergy": "716239c5e9c3620119bcce909adba5dfc56c39b1185886ef4e5d717b514111fe",
        "sql": "0892a1f510a724e2bedde97172d04343def9fe6a26ff8f2c1b96d10aa51185db",
    }
    shipped = load_domains(Path(__file__).parents[3] / "domains")
    assert {name: shipped[name].domain.prompt_sha for name in known} == known
