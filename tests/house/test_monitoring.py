"""Alerts and dashboard ask for series that exist, by labels that they have, and ring as they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from preceptor_gateway.metrics import Metrics
from prometheus_client import generate_latest

from tests.house.tree import ROOT
from tests.prerequisites import require

FOLDER = ROOT / "services/monitoring"
DASHBOARD = FOLDER / "grafana/dashboards/preceptor.json"
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
NAME = re.compile(r"\b(?:preceptor_[a-z_]+|vllm:[a-z_]+)")
# What Prometheus itself adds to every series.
TARGET_LABELS = {"instance", "job"}


def used() -> Metrics:
    """Series that all have a value."""
    metrics = Metrics()
    metrics.watch_aliases(lambda: {"clinic": "clinic-v1-00000001"})
    meter = metrics.begin({"type": "http", "headers": []}, "an-id")
    call = meter.call("/v1/chat/completions", "clinic", "clinic-v1-00000001")
    for _ in range(2):
        call.chunk(b'data: {"usage":{"prompt_tokens":1},"metrics":{"queue_time_ms":1.0}}\n\n')
    call.end()
    meter.done(429, "rate_limit_exceeded")
    labelled = (metrics.answers, metrics.safety, metrics.engine_up, metrics.adapter_ready, metrics.adapter_state)
    for one in (*labelled, metrics.adapter_loads):
        one.labels(*("any" for _ in one._labelnames))
    return metrics


def exposed() -> dict[str, set[str]]:
    """Every series of the gateway with its labels, as a scrape shows them once each has a value."""
    return {
        sample.name: set(sample.labels)
        for family in used().registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def engine_series() -> set[str]:
    return set((FOLDER / "vllm-series.txt").read_text().split())


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[tuple[str, str]]:
    """Every query with the place it stands in."""
    of_rules = [(rule["alert"], rule["expr"]) for rule in RULES]
    return of_rules + [(panel["title"], target["expr"]) for panel in panels() for target in panel.get("targets", ())]


def test_queries_were_found() -> None:
    assert len(RULES) >= 8
    assert len(expressions()) >= 40


@pytest.mark.parametrize(("place", "query"), expressions())
def test_a_query_asks_for_series_and_labels_that_exist(place: str, query: str) -> None:
    series = exposed()
    named = [name for name in NAME.findall(query) if name not in series and name not in engine_series()]
    assert named == []
    assert NAME.search(query) or query.startswith("up{")
    for name, matchers in re.findall(rf"({NAME.pattern})\{{([^}}]*)\}}", query):
        asked = set(re.findall(r"([a-z_]+)\s*[=!]~?", matchers))
        assert asked <= series.get(name, set()) | TARGET_LABELS, name


def test_the_dashboard_shows_every_series_of_the_gateway() -> None:
    asked = {name for place, query in expressions() for name in NAME.findall(query)}
    histograms = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed()}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert histograms - shown == set()


def test_engine_series_are_vllms_own() -> None:
    sources = list((ROOT / ".venv-engine").glob("lib/python3.*/site-packages/vllm/v1/metrics/loggers.py"))
    require(sources, "There is no vLLM in .venv-engine; run `make setup`.")
    text = sources[0].read_text()
    missing = {name for name in engine_series() if f'"{re.sub(r"_(total|bucket)$", "", name)}"' not in text}
    assert missing == set()
    asked = {name for _, query in expressions() for name in NAME.findall(query) if name.startswith("vllm:")}
    assert asked == engine_series()


def test_the_dashboard_is_stable_and_whole() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["uid"] == "preceptor"
    assert board.get("id") is None
    sources = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (source,) = [one for one in sources if one["type"] == "prometheus"]
    every = panels()
    assert len({panel["id"] for panel in every}) == len(every)
    assert {
        one["datasource"]["uid"] for panel in every for one in [*panel.get("targets", ()), *board["templating"]["list"]]
    } == {source["uid"]}
    rows = [panel["title"] for panel in every if panel["type"] == "row"]
    assert rows == ["Traffic", "Errors", "Latency", "Tokens", "Per adapter", "Engines", "Limits"]
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_each_alert_says_what_to_do_and_is_tested() -> None:
    tested = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
    named = [one for test in tested for one in test["alert_rule_test"]]
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        cases = [bool(one["exp_alerts"]) for one in named if one["alertname"] == rule["alert"]]
        assert set(cases) == {True, False}, f"{rule['alert']} needs a test that rings and one that does not."


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "config", "prometheus.compose.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts.test.yml"),
    ],
)
def test_promtool_has_nothing_to_say(arguments: tuple[str, ...]) -> None:
    tool = shutil.which("promtool")
    require(tool, "promtool is not installed; Debian's package prometheus has it.")
    done = subprocess.run([str(tool), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_reads_every_query_of_the_dashboard(tmp_path: Any) -> None:
    tool = shutil.which("promtool")
    require(tool, "promtool is not installed; Debian's package prometheus has it.")
    queries = [query.replace("$__rate_interval", "5m") for _, query in expressions()]
    rules = {"groups": [{"name": "all", "rules": [{"record": f"q{n}", "expr": one} for n, one in enumerate(queries)]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    done = subprocess.run(
        [str(tool), "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_scrape_names_each_family_once() -> None:
    text = generate_latest(used().registry).decode()
    families = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(families) == len(set(families)) >= 20


def test_promtool_reads_a_scrape() -> None:
    tool = shutil.which("promtool")
    require(tool, "promtool is not installed; Debian's package prometheus has it.")
    scraped = generate_latest(used().registry)
    done = subprocess.run([str(tool), "check", "metrics"], input=scraped, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
