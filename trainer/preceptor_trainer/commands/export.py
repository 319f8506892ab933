"""Adapters leave for elsewhere: merged weights, GGUF, an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from preceptor_contracts.errors import InvalidInput

from preceptor_trainer.commands import options
from preceptor_trainer.export.places import gib

AdapterArgument = Annotated[str, typer.Argument(help="Name of a folder under ADAPTERS_DIR.")]


def merge(
    adapter: AdapterArgument,
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
) -> int:
    """Merges an adapter into its base model in 16 bit, a folder for transformers and vLLM, and verifies it."""
    from preceptor_trainer.export import merging
    from preceptor_trainer.export.bases import open_adapter

    precision = cast(merging.Precision, _one_of("--dtype", dtype, get_args(merging.Precision)))
    shop = options.open_shop()
    report = merging.merge(shop.settings, open_adapter(shop.settings.adapters_dir, adapter), out, precision)
    shop.terminal.say(
        f"Merged {report.adapter} into {report.out} ({report.dtype}, {gib(report.bytes)}) in {report.seconds:.0f} s. "
        f"In float32 the largest difference of a logit is {report.logit_deviation:.1e}; reread from disk the canary is "
        f"off by {report.canary_deviation:.3f} nats, allowed are {report.canary_separation / 4:.3f}."
    )
    return 0


def export(
    adapter: AdapterArgument,
    gguf: Annotated[str | None, typer.Option(help="f16 or q8_0: one file for llama.cpp and Ollama.")] = None,
    out: Annotated[Path | None, typer.Option(help="With --gguf: file to make, ending in .gguf.")] = None,
    archive: Annotated[Path | None, typer.Option(help="File to pack the adapter's folder into: .tar.gz.")] = None,
) -> int:
    """Writes an adapter as GGUF, merged, or packs its folder; and verifies what was written."""
    if (gguf is None) == (archive is None):
        raise InvalidInput("Say either --gguf or --archive.", hint="See `preceptor-trainer export --help`.")
    if archive is not None:
        return _export_archive(adapter, _ending("--archive", archive, ".tar.gz"))
    if out is None:
        raise InvalidInput("--gguf needs --out.", hint=f"For example --out {adapter}.gguf")
    return _export_gguf(adapter, str(gguf), _ending("--out", out, ".gguf"))


def _export_gguf(name: str, quantisation: str, out: Path) -> int:
    from preceptor_trainer.export import gguf_writing
    from preceptor_trainer.export.bases import open_adapter
    from preceptor_trainer.export.gguf_layout import Quantisation

    kind = cast(Quantisation, _one_of("--gguf", quantisation, get_args(Quantisation)))
    shop = options.open_shop()
    adapter = open_adapter(shop.settings.adapters_dir, name)
    report = gguf_writing.export_gguf(shop.settings, adapter, out, kind)
    shop.terminal.say(
        f"Wrote {report.out} ({report.quantisation}, {gib(report.bytes)}) in {report.seconds:.0f} s, with a Modelfile "
        f"and a card beside it. Reread, its logits are off by {report.logit_error:.2%} of their spread and the canary "
        f"by {report.canary_deviation:.3f} nats, allowed are {report.canary_separation / 4:.3f}; its tokenizer makes "
        "the canary's token ids."
    )
    return 0


def _export_archive(name: str, out: Path) -> int:
    from preceptor_trainer.export.archives import export_archive
    from preceptor_trainer.export.bases import open_adapter

    shop = options.open_shop()
    report = export_archive(shop.settings, open_adapter(shop.settings.adapters_dir, name), out)
    shop.terminal.say(
        f"Packed {report.adapter} into {report.out} ({gib(report.bytes)}, sha256 {report.sha256}). "
        f"{verified(report.canary_deviation)}"
    )
    return 0


def verified(deviation: float | None) -> str:
    """Says how an unpacked adapter was verified."""
    if deviation is None:
        return "Unpacked, every file has its hash; BASE_MODEL is another base model, so the canary was not asked."
    return f"Unpacked, every file has its hash and the canary is off by {deviation:.4f} nats."


def _one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InvalidInput(f"{option} {value!r} is not known.", hint=f"Known: {', '.join(known)}.")
    return value


def _ending(option: str, path: Path, ending: str) -> Path:
    if not path.name.endswith(ending) or path.name == ending:
        raise InvalidInput(f"{option} {str(path)!r} does not end in {ending}.", hint=f"For example {path}{ending}")
    return path
