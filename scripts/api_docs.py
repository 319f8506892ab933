"""Writes docs/api.md from the gateway's OpenAPI document: `make docs`. A house test holds the page to it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preceptor_gateway.app import create_app
from preceptor_gateway.settings import GatewaySettings

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/api.md"
TAGS = {
    "openai": "OpenAI",
    "mcq": "Multiple choice",
    "seeds": "The seeds' routes",
    "domains": "Domains",
    "adapters": "Adapters",
    "keys": "Keys",
    "health": "Health",
}
"""Order and headings of the parts; a tag that is not here stops the script."""
HEAD = """# The API, field by field

This page is generated from the gateway's OpenAPI document by `make docs`; a test holds it to the code. Change the code,
not the page. The running gateway shows the same at `/docs`, and as JSON at `/openapi.json`. How to use the routes is in
[gateway.md](gateway.md).

Send a key as `Authorization: Bearer <key>`. Each route says which scope the key needs. Bodies are JSON. Unknown fields
are refused, but for OpenAI's routes, which pass them to the engine. What is not required may be left out.
"""
REF = "#/components/schemas/"
KIND = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "object", "null": "null"}


def anchor(heading: str) -> str:
    """A heading as GitHub links it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def link(heading: str) -> str:
    """A link to a heading of this page."""
    return f"[{heading}](#{anchor(heading)})"


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def bounds(schema: Json) -> str:
    """What limits a number, a text or a list, in words; empty where nothing does."""
    words = []
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
    ):
        least, most = schema.get(low), schema.get(high)
        if least is not None and most is not None:
            words.append(f"{least:,.10g} to {most:,.10g}{unit}")
        elif most is not None:
            words.append(f"at most {most:,.10g}{unit}")
        elif least is not None:
            words.append("not empty" if unit and least == 1 else f"at least {least:,.10g}{unit}")
    if "exclusiveMinimum" in schema:
        words.append(f"above {schema['exclusiveMinimum']:,.10g}")
    if "pattern" in schema:
        words.append(f"matching `{schema['pattern']}`")
    return f" ({', '.join(words)})" if words else ""


def kind_of(schema: Json, *, shown: bool = True) -> str:
    """A schema's type in words; `shown` says whether its bounds are."""
    if "$ref" in schema:
        return link(schema["$ref"].removeprefix(REF))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(kind_of(one, shown=shown) for one in options))
    kinds = schema.get("type")
    if isinstance(kinds, list):
        return " or ".join(kind_of({**schema, "type": kind}) for kind in kinds)
    if kinds == "null":
        return "null"
    if kinds == "array":
        items = schema.get("items") or {"type": "object"}
        return f"list of {kind_of(items, shown=False)}{bounds(schema) if shown else ''}"
    if kinds == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {kind_of(schema['additionalProperties'])}"
    if kinds == "string" and schema.get("format") == "date-time":
        return "time"
    return KIND.get(str(kinds), str(kinds or "anything")) + (bounds(schema) if shown else "")


def default_of(schema: Json, *, is_required: bool) -> str:
    """A field's default in code, or that it has none."""
    if is_required:
        return "required"
    default = schema.get("default")
    words: dict[object, str] = {None: "", "": "empty", True: "`true`", False: "`false`"}
    if isinstance(default, list):
        return f"`{', '.join(map(str, default))}`" if default else "empty"
    return words.get(default, f"`{default}`")


def table(schema: Json, *, asked: bool) -> Iterator[str]:
    """The fields of an object.

    Args:
        schema: The object's.
        asked: Whether clients send it, so that defaults matter.
    """
    required = schema.get("required", ())
    yield "| field | type | default | meaning |" if asked else "| field | type | meaning |"
    yield "|---|---|---|---|" if asked else "|---|---|---|"
    for name, field in schema.get("properties", {}).items():
        kind, default = kind_of(field), ""
        if asked:
            # Leaving a field out and sending null are the same; only answers need to tell null apart.
            kind = kind.removesuffix(" or null")
            default = f"{default_of(field, is_required=name in required)} | "
        row = f"| `{name}` | {cell(kind)} | {default}{cell(field.get('description', ''))} |"
        yield row.replace("|  |", "| |")
    yield ""


def fields(schema: Json, what: str, *, asked: bool) -> Iterator[str]:
    """A body: a link to its shape, or its fields where it has no name."""
    if "properties" in schema:
        yield f"{what}:"
        yield ""
        yield from table(schema, asked=asked)
    elif schema.get("type") != "object":
        yield f"{what}: {kind_of(schema)}."
        yield ""


def bodies(operation: Json) -> Iterator[str]:
    """What a route takes and gives."""
    if body := operation.get("requestBody"):
        yield from fields(body["content"]["application/json"]["schema"], "Request", asked=True)
    for status, response in operation["responses"].items():
        if not status.startswith("2"):
            continue
        for media, content in response.get("content", {}).items():
            if media == "application/json":
                yield from fields(content["schema"], f"Answer ({status})", asked=False)
            else:
                yield f"Answer ({status}) as `{media}`: {content['schema'].get('description', 'text.')}"
                yield ""


def route(method: str, path: str, operation: Json) -> Iterator[str]:
    """One route."""
    yield f"### {method.upper()} {path}"
    yield ""
    security = operation.get("security")
    scope = "none" if not security else "`admin`" if "admin" in next(iter(security[0].values())) else "`use`"
    yield operation.get("description", "").strip()
    yield ""
    yield f"Key: {scope}."
    yield ""
    yield from bodies(operation)


def shapes(document: Json) -> Iterator[str]:
    """Every named shape."""
    sent = {
        name
        for operations in document["paths"].values()
        for operation in operations.values()
        for name in named(operation.get("requestBody", {}), document)
    }
    yield "## Shapes"
    yield ""
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f"### {name}"
        yield ""
        yield schema.get("description", "").strip()
        yield ""
        if "enum" in schema:
            yield f"One of {', '.join(f'`{value}`' for value in schema['enum'])}."
            yield ""
        else:
            yield from table(schema, asked=name in sent)


def named(schema: object, document: Json, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """Names of the shapes that a schema is made of, and those that these are made of."""
    if isinstance(schema, list):
        return frozenset().union(*(named(one, document, seen) for one in schema))
    if not isinstance(schema, dict):
        return frozenset()
    found = frozenset().union(*(named(one, document, seen) for one in schema.values()))
    name = str(schema.get("$ref", "")).removeprefix(REF)
    if name and name not in seen:
        found |= {name} | named(document["components"]["schemas"][name], document, seen | {name})
    return found


def errors(document: Json) -> Iterator[str]:
    """What every route may answer besides."""
    yield "## Errors"
    yield ""
    yield f"Every error is a {link('ProblemBody')}. docs/gateway.md [lists the codes](gateway.md#errors)."
    yield ""
    yield "| status | meaning |"
    yield "|---|---|"
    responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    for status, response in responses.items():
        if not status.startswith("2"):
            yield f"| {status} | {cell(response['description'])} |"
    yield ""


def render(document: Json) -> str:
    """The whole page."""
    lines = [*HEAD.splitlines(), ""]
    operations = [
        (operation["tags"][0], method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    unknown = {tag for tag, *_ in operations} - set(TAGS)
    if unknown:
        raise SystemExit(f"scripts/api_docs.py knows no heading for the tags {sorted(unknown)}. Add them to TAGS.")
    for tag, heading in TAGS.items():
        lines += [f"## {heading}", ""]
        for one, method, path, operation in operations:
            if one == tag:
                lines += route(method, path, operation)
    lines += [*errors(document), *shapes(document)]
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def document() -> Json:
    """The gateway's OpenAPI document; nothing is served and no .env is read."""
    # The keys open nothing: no gateway is started with them.
    settings = GatewaySettings.model_validate(
        {"api_key": "for the page only", "admin_key": "and this", "DOMAINS_DIR": ROOT / "domains"}
    )
    found: Json = create_app(settings).api.openapi()
    return found


def main() -> int:
    """Writes the page."""
    PAGE.write_text(render(document()))
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
