"""The shelf of adapters: look them over, compare, archive, restore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from preceptor_contracts.domains import find_domain

from preceptor_trainer.commands import options
from preceptor_trainer.commands.export import AdapterArgument, verified

app = typer.Typer(help="Lists, shows, compares, archives and restores adapters.", no_args_is_help=True)
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command("list")
def list_adapters(
    domain: Annotated[str | None, typer.Argument(help="Only this domain's.")] = None, as_json: JsonOption = False
) -> int:
    """Lists the adapters with their newest exam, and what the gateway does with them."""
    from preceptor_trainer.registry.shelf import look, shelf_text
    from preceptor_trainer.registry.versions import archives_in

    shop = options.open_shop()
    shelf = look(shop, domain)
    if domain is not None and not shelf.adapters:
        find_domain(shop.settings.domains_dir, domain)  # a misspelt name shall not look like an empty shelf
    if as_json:
        shop.terminal.say(shelf.model_dump_json(indent=2))
        return 0
    if shelf.adapters:
        shop.terminal.say(shelf_text(shelf))
    else:
        shop.terminal.say(f"There is no adapter in {shop.settings.adapters_dir}.")
    if shelf.gateway:
        shop.terminal.say(f"Which are promoted is unknown: {shelf.gateway}")
    archived = list(dict.fromkeys(each.adapter for each in archives_in(shop.settings.adapters_dir)))
    if archived:
        shop.terminal.say(f"Archived: {', '.join(archived)}.")
    return 0


@app.command()
def show(
    adapter: AdapterArgument,
    as_json: JsonOption = False,
    card: Annotated[bool, typer.Option("--card", help="Print the model card, with all exams so far.")] = False,
) -> int:
    """Shows one adapter: manifest, training, exams; and verifies its files."""
    from preceptor_trainer.export.bases import find_adapter
    from preceptor_trainer.registry import shelf
    from preceptor_trainer.registry.model_card import ADAPTER, card_of

    shop = options.open_shop()
    if card:
        found = find_adapter(shop.settings.adapters_dir, adapter)
        shop.terminal.say(card_of(shop.settings, found, ADAPTER))
        return 0
    shown = shelf.show(shop, adapter)
    if as_json:
        shop.terminal.say(shown.model_dump_json(indent=2))
    else:
        shop.terminal.say(shelf.shown_text(shown))
    return 0 if shown.is_verified else options.BROKEN


@app.command()
def diff(
    left: AdapterArgument,
    right: AdapterArgument,
    weights: Annotated[bool, typer.Option("--weights", help="Also how far apart each layer is.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Compares two adapters: data, recipe, base model, libraries, metrics, exams."""
    from preceptor_trainer.export.bases import find_adapter
    from preceptor_trainer.registry.differences import compare, differences_text

    shop = options.open_shop()
    folders = [find_adapter(shop.settings.adapters_dir, name) for name in (left, right)]
    differences = compare(folders[0], folders[1], weights=weights)
    if as_json:
        shop.terminal.say(differences.model_dump_json(indent=2))
        return 0
    shop.terminal.say(differences_text(differences))
    return 0


@app.command()
def archive(
    adapter: AdapterArgument,
    unload: Annotated[bool, typer.Option("--unload", help="Take it out of the engines first.")] = False,
    without_gateway: Annotated[
        bool, typer.Option("--without-gateway", help="Do not ask whether it serves: no gateway uses this folder.")
    ] = False,
) -> int:
    """Packs an adapter that does not serve, verifies the archive, and removes the folder."""
    from preceptor_trainer.registry.retiring import retire

    shop = options.open_shop()
    retired = retire(shop, adapter, unload=unload, without_gateway=without_gateway)
    told = "It was archived before, with the same files." if retired.report is None else ""
    told = told or verified(retired.report.canary_deviation if retired.report else None)
    shop.terminal.say(f"Archived {adapter} as {retired.path}. {told}")
    shop.terminal.say(f"Its version is not given again. Back with `preceptor-trainer adapters restore {adapter}`.")
    return 0


@app.command()
def restore(
    archived: Annotated[str, typer.Argument(help="An archive, or the name of an archived adapter.", metavar="ARCHIVE")],
) -> int:
    """Puts an archived adapter back under ADAPTERS_DIR, verified first."""
    from preceptor_trainer.registry.retiring import restore as put_back

    shop = options.open_shop()
    restored = put_back(shop, Path(archived))
    shop.terminal.say(f"Restored {restored.adapter}. {verified(restored.canary_deviation)}")
    return 0
