"""`export --gguf`: merged weights as one file for llama.cpp and Ollama, reread before it is kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preceptor_contracts.errors import PreceptorError
from preceptor_contracts.files import write_atomic
from preceptor_contracts.frozen import Frozen
from preceptor_contracts.manifest import AdapterFolder, Canary

from preceptor_trainer.canary import ask
from preceptor_trainer.export.bases import open_base
from preceptor_trainer.export.gguf_layout import Quantisation, add_shape, check_supported, rope_of, tensors
from preceptor_trainer.export.gguf_vocabulary import SMOLLM, Vocabulary, add_vocabulary, read_vocabulary
from preceptor_trainer.export.merging import check_canary, merge_in_memory, prompt_logits
from preceptor_trainer.export.modelfile import modelfile
from preceptor_trainer.export.places import check_place, written_whole
from preceptor_trainer.registry.model_card import GGUF, card_of
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.tokens import load_tokenizer, prompt_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
"""Bytes a weight: Q8_0 stores 32 numbers of a byte and one float16 scale."""
_TOLERANCE = {"f16": 0.01, "q8_0": 0.1}
"""Largest relative error of the logits (root mean square, against float32). A wrong order of rows gives about 1."""
_SMALL_PARTS = 32 * 2**20


class GgufReport(Frozen):
    """What an export to GGUF made, and how near it came."""

    adapter: str
    out: str
    quantisation: Quantisation
    bytes: int
    merge_deviation: float
    """Largest difference of a logit, in float32, between base with adapter and merged weights."""
    logit_error: float
    """Relative error of the reread file's logits: root mean square, against the merged float32 weights."""
    logit_deviation: float
    """Largest difference of a logit, the same comparison."""
    canary_deviation: float
    """Mean, in nats: the reread file against the manifest's canary."""
    canary_separation: float
    """Nats between adapter and base; a quarter of it is allowed."""
    seconds: float


def export_gguf(settings: TrainerSettings, adapter: AdapterFolder, out: Path, quantisation: Quantisation) -> GgufReport:
    """Writes `out`, a Modelfile for Ollama and a model card beside it.

    Raises:
        InvalidInput: The base model is another one, quantised, or of a family that is not known here; `out` exists.
        PreceptorError: The reread file does not answer as the adapter does; nothing is left then.
    """
    started = time.monotonic()
    base = open_base(settings, adapter.manifest)
    check_supported(base.config)
    tokenizer = load_tokenizer(base.source)
    vocabulary = read_vocabulary(tokenizer, int(base.config.vocab_size))
    beside = {out.with_suffix(".Modelfile"): 0, out.with_suffix(".README.md"): 0}
    for path, size in {out: int(base.parameters * _BYTES[quantisation]) + _SMALL_PARTS, **beside}.items():
        check_place(path, bytes_needed=size)
    merged = merge_in_memory(base, adapter)
    expected_TV, merge_deviation = merged.logits_TV, merged.deviation
    with written_whole(out) as partial:
        name, description = adapter.path.name, f"{adapter.manifest.base_model.id} with an adapter of Preceptor's"
        write_gguf(partial, merged.weights, quantisation, tokenizer, vocabulary, name=name, description=description)
        # Gives the memory back before the weights are loaded again.
        del merged
        check_tokenizer(partial, tokenizer, adapter.manifest.canary, vocabulary)
        reread = read_gguf(partial, base.config)
        observed_TV = prompt_logits(reread, adapter.manifest.canary.prompt_ids)
        error = relative_error(observed_TV, expected_TV)
        if not error <= _TOLERANCE[quantisation]:
            raise PreceptorError(
                f"The reread file answers otherwise than the merged weights: its logits are off by {error:.1%}, "
                f"allowed are {_TOLERANCE[quantisation]:.0%}.",
                code="gguf_differs",
                hint="Nothing was kept. Please report it, with the base model's name.",
            )
        observed = ask(reread, adapter.manifest.canary)
        check_canary(observed, adapter.manifest.canary, "The reread file")
    write_atomic(out.with_suffix(".Modelfile"), modelfile(settings, adapter.manifest, tokenizer, out.name))
    card = card_of(settings, adapter, GGUF._replace(name=out.stem, precision=quantisation.upper()))
    write_atomic(out.with_suffix(".README.md"), card)
    return GgufReport(
        adapter=adapter.path.name,
        out=str(out),
        quantisation=quantisation,
        bytes=out.stat().st_size,
        merge_deviation=merge_deviation,
        logit_error=error,
        logit_deviation=float((observed_TV - expected_TV).abs().max()),
        canary_deviation=adapter.manifest.canary.deviation(observed),
        canary_separation=adapter.manifest.canary.separation,
        seconds=round(time.monotonic() - started, 1),
    )


def check_tokenizer(path: Path, tokenizer: PreTrainedTokenizerBase, canary: Canary, vocabulary: Vocabulary) -> None:
    """Reads the tokenizer and its chat template back from the file and compares the canary's token ids.

    Raises:
        PreceptorError: They differ.
    """
    from transformers import AutoTokenizer

    reread: Any = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    if vocabulary.cutting == SMOLLM:
        # transformers 5.23 does not know this name and would not cut numbers into digits, as llama.cpp does.
        own: Any = tokenizer
        reread.backend_tokenizer.pre_tokenizer = own.backend_tokenizer.pre_tokenizer
    ids = prompt_ids(reread, canary.messages)
    if tuple(ids) != canary.prompt_ids:
        raise PreceptorError(
            "The reread file makes other token ids of the canary's prompt than the base model's tokenizer.",
            code="gguf_differs",
            hint="Nothing was kept. Please report it, with the base model's name.",
        )


def write_gguf(
    path: Path,
    weights: Any,
    quantisation: Quantisation,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    *,
    name: str,
    description: str,
) -> None:
    """Writes weights and tokenizer; a copy of one tensor at a time is in memory.

    Raises:
        InvalidInput: The weights are of a family that is not known here.
    """
    import gguf

    architecture = check_supported(weights.config)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_description(description)
    kinds = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(kinds[quantisation])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, weights.config, architecture)
    add_vocabulary(writer, vocabulary, tokenizer)
    try:
        # Two passes: the table of tensors stands before them, and only one is converted at a time.
        for stored in tensors(weights, architecture, quantisation):
            numbers, size = gguf.GGML_QUANT_SIZES[stored.kind]
            count, plain = stored.tensor.numel(), stored.tensor[:0].numpy().dtype
            writer.add_tensor_info(stored.name, tuple(stored.tensor.shape), plain, count // numbers * size, stored.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for stored in tensors(weights, architecture, quantisation):
            writer.write_tensor_data(gguf.quants.quantize(stored.tensor.contiguous().numpy(), stored.kind))
    finally:
        writer.close()


def read_gguf(path: Path, config: PretrainedConfig) -> Any:
    """Loads a GGUF file through transformers, in float32.

    Args:
        path: The file.
        config: The base model's; used only where transformers cannot read it from the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    told: dict[str, Any] = {}
    if rope_of(config).get("rope_type", "default") != "default" or getattr(config, "attention_bias", False):
        # transformers 5.23 does not look for `rope_freqs.weight` and Llama's biases in the file; llama.cpp does.
        told["config"] = config
    weights = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        **told,
    )
    return weights.eval()


def relative_error(observed_TV: Any, expected_TV: Any) -> float:
    """Returns the root mean square of the difference over that of the logits, both about their mean at each position.

    A logit's distance from that mean is what decides an answer.
    """
    centred_TV = expected_TV - expected_TV.mean(dim=-1, keepdim=True)
    apart_TV = observed_TV - expected_TV
    apart_TV = apart_TV - apart_TV.mean(dim=-1, keepdim=True)
    return float(apart_TV.square().mean().sqrt() / centred_TV.square().mean().sqrt())
