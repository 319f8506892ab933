"""Schemathesis asks every operation of the OpenAPI document, well and badly, and holds the answers to the document."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import requests
import schemathesis
from preceptor_contracts.report import Verdict
from preceptor_gateway.app import create_app
from preceptor_gateway.settings import GatewaySettings
from pydantic import SecretStr
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    ignored_auth,
    missing_required_header,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.stack import REPO
from tests.unit.gateway.conftest import V1, V2, Stack, stack_maker

EXAMPLES = 40
_KEYS = {"api_key": SecretStr("use-key"), "admin_key": SecretStr("admin-key")}
DOCUMENT = create_app(GatewaySettings.model_validate(_KEYS)).api.openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = sum(len(methods) for methods in DOCUMENT["paths"].values())

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    ignored_auth,
    missing_required_header,
    unsupported_method,
    allow_header_conformance,
]
KIND = re.compile(r"Incorrect type$|violates `(type|anyOf)` at /properties/\w+(/anyOf/\d+)?( |$)")


def negative_data_rejection_but_for_kinds(context: Any, response: Any, case: Any) -> bool | None:
    """What breaks the document is refused, but for a scalar of another kind.

    Pydantic, ours and vLLM's, reads `false` as 0, 1 as `true` and "5" as 5.
    """
    try:
        return negative_data_rejection(context, response, case)
    except AcceptedNegativeData as failure:
        broken = [line for line in failure.message.splitlines() if line.startswith(("Invalid component: in", "  - "))]
        if broken and all(KIND.search(line) for line in broken):
            return None
        raise


EXCLUDED: dict[Any, str] = {
    positive_data_acceptance: "rules that JSON Schema cannot say are 400 too: a blank question, two options that are "
    "the same, one field in place of another",
}
"""Checks that are left out, each with its reason."""
CHECKS.append(negative_data_rejection_but_for_kinds)
NAMES = {"model": ["base", "clinic:base", "clinic"], "domain": ["clinic"], "adapter": [V1, V2]}
"""What exists, by the field that names it; random names never meet it."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack_maker(tmp_path_factory.mktemp("schema")) as make:
        one = make()
        one.promote(V1, report=one.add(V1, Verdict.BETTER)).raise_for_status()
        one.add(V2, Verdict.BETTER)
        yield one


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as one:
        yield one


@SCHEMA.auth()
class AdminKey:
    """The key that every route takes; the check `ignored_auth` asks again without it, and with a wrong one."""

    def get(self, case: schemathesis.Case[Any], context: schemathesis.AuthContext) -> str:
        return "admin-key"

    def set(self, case: schemathesis.Case[Any], data: str, context: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {data}"


def point_at_what_exists(case: schemathesis.Case[Any]) -> None:
    """Puts a name that exists in the place of most random ones, so that more is asked than whether it exists."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return

    def chosen(value: Any, names: list[str]) -> Any:
        coin = zlib.crc32(repr(value).encode())
        return names[coin % len(names)] if isinstance(value, str) and coin % 3 else value

    if isinstance(case.body, dict):
        for field in NAMES.keys() & case.body.keys():
            case.body[field] = chosen(case.body[field], NAMES[field])
    path = case.operation.path
    for field in case.path_parameters or {}:
        names = [V1] if path.startswith("/v1/adapters") else ["clinic"] if path.startswith("/v1/domains") else ["base"]
        case.path_parameters[field] = chosen(case.path_parameters[field], names)


def test_every_operation_is_asked() -> None:
    assert len(list(SCHEMA.get_all_operations())) == OPERATIONS >= 25


@SCHEMA.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    # CI asks the same each time: what it refuses must be the change. Whoever runs it by hand explores.
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_answers_keep_to_the_document(case: schemathesis.Case[Any], stack: Stack, session: requests.Session) -> None:
    point_at_what_exists(case)
    case.call_and_validate(base_url=stack.url, session=session, checks=CHECKS)


def documented_keys() -> list[tuple[str, str, str]]:
    """Method, path and key of each route, as docs/gateway.md has them."""
    rows = re.findall(r"^\| `([A-Z]+) (/\S*)` \| (\w+) \|", (REPO / "docs/gateway.md").read_text(), re.MULTILINE)
    return [(method, path, key) for method, path, key in rows]


@pytest.mark.parametrize(("method", "path", "key"), documented_keys())
def test_a_route_takes_the_key_that_its_page_says(stack: Stack, method: str, path: str, key: str) -> None:
    def status(token: str) -> int:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.request(method, stack.url + re.sub(r"{\w+}", "none", path), headers=headers).status_code

    assert (status("") == 401) == (status("wrong") == 401) == (key != "none")
    assert (status("use-key") == 403) == (key == "admin")
    assert status("admin-key") not in (401, 403)
