import importlib.util
import re
import sys
from types import ModuleType

import pytest
from preceptor_engine.settings import EngineSettings
from preceptor_gateway.settings import GatewaySettings
from preceptor_trainer.settings import TrainerSettings
from preceptor_ui.settings import Settings as UiSettings
from pydantic_settings import BaseSettings

from tests.house.tree import ROOT

# Make's argument, `make demo ONCE=1`: in a file it would surprise. The terminal's width, where torch comes from, which
# empty is an answer to, and what a build is made of.
NOT_IN_THE_FILE = {"ONCE", "COLUMNS", "TORCH_INDEX", "PRECEPTOR_REVISION"}


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"house_{name}", ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


DEMO: type[BaseSettings] = load_script("demo").DemoSettings
CLASSES: tuple[type[BaseSettings], ...] = (EngineSettings, GatewaySettings, TrainerSettings, UiSettings, DEMO)


def variables(settings: type[BaseSettings]) -> dict[str, object]:
    """Environment names that a class reads, with the defaults."""
    prefix = settings.model_config.get("env_prefix", "")
    return {
        str(field.validation_alias or f"{prefix}{name}".upper()): field.get_default()
        for name, field in settings.model_fields.items()
    }


def example() -> dict[str, str]:
    text = (ROOT / ".env.example").read_text()
    found = re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE)
    assert len(found) == len(dict(found)), "A variable stands there twice."
    return dict(found)


def in_compose() -> dict[str, str | None]:
    """Variables of the Compose files with the first file's default; None where there is none, or it is passed on."""
    texts = [(ROOT / name).read_text() for name in ("docker-compose.yaml", "compose.cpu.yaml")]
    passed = {name: None for text in texts for name in re.findall(r"^      ([A-Z][A-Z0-9_]*):$", text, re.MULTILINE)}
    found: dict[str, str | None] = {}
    for text in texts:
        for name, default in re.findall(r"\$\{([A-Z0-9_]+)(?::?-([^}]*)|:\?[^}]*)?\}", text):
            found.setdefault(name, default or None)
    return {**passed, **found}


def test_the_example_names_every_setting_and_no_other() -> None:
    read = {name for settings in CLASSES for name in variables(settings)}
    assert set(example()) == (read | set(in_compose())) - NOT_IN_THE_FILE


def test_compose_has_the_examples_defaults() -> None:
    values = example()
    differing = {
        name: default
        for name, default in in_compose().items()
        if name not in NOT_IN_THE_FILE and default is not None and default != values[name]
    }
    assert differing == {}


@pytest.mark.parametrize("settings", CLASSES, ids=lambda settings: settings.__module__)
def test_the_example_shows_the_defaults(settings: type[BaseSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    values = example()
    for name in variables(settings):
        monkeypatch.setenv(name, values.get(name) or ("a-key" if name.endswith("_KEY") else ""))
    from_file = settings(_env_file=None)
    for name, field in settings.model_fields.items():
        if not str(field.validation_alias or name).upper().endswith("_KEY"):
            assert getattr(from_file, name) == field.get_default(), name


def test_no_example_holds_a_key() -> None:
    secret = ("_KEY", "_PASSWORD", "_TOKEN")
    assert {name: value for name, value in example().items() if name.endswith(secret) and value} == {}
