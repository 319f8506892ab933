from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preceptor_contracts.errors import InvalidInput, PreceptorError
from preceptor_trainer import cli
from preceptor_trainer.commands import options
from preceptor_trainer.export import gguf_layout, gguf_writing
from preceptor_trainer.export.bases import open_adapter
from preceptor_trainer.export.gguf_layout import Quantisation, check_supported
from preceptor_trainer.export.gguf_vocabulary import read_vocabulary
from preceptor_trainer.export.gguf_writing import read_gguf, relative_error, write_gguf
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Workshop
from preceptor_trainer.tokens import load_tokenizer

from tests.unit.trainer.fixtures import CHAT_TEMPLATE

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(("quantisation", "error"), [("f16", 0.002), ("q8_0", 0.02)])
def test_a_reread_file_answers_as_base_with_adapter(
    quantisation: Quantisation, error: float, settings: TrainerSettings, adapter: str, tmp_path: Path
) -> None:
    out = tmp_path / "plants.gguf"
    found = open_adapter(settings.adapters_dir, adapter)
    report = gguf_writing.export_gguf(settings, found, out, quantisation)
    assert report.logit_error < error
    assert report.canary_deviation < report.canary_separation / 4
    assert report.bytes == out.stat().st_size
    assert sorted(path.name for path in tmp_path.glob("plants.*")) == [
        "plants.Modelfile",
        "plants.README.md",
        "plants.gguf",
    ]


def test_the_modelfile_says_what_training_said(settings: TrainerSettings, adapter: str, tmp_path: Path) -> None:
    found = open_adapter(settings.adapters_dir, adapter)
    gguf_writing.export_gguf(settings, found, tmp_path / "plants.gguf", "q8_0")
    text = (tmp_path / "plants.Modelfile").read_text(encoding="utf-8")
    assert "FROM ./plants.gguf\n" in text
    assert 'SYSTEM """Name the colour."""' in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>" in text
    card = (tmp_path / "plants.README.md").read_text(encoding="utf-8")
    assert "library_name: gguf" in card
    assert "ollama create plants -f plants.Modelfile" in card


def test_rows_in_the_wrong_order_are_noticed_and_nothing_is_kept(
    settings: TrainerSettings, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_layout, "_reorder", lambda name, tensor, config: tensor)
    found = open_adapter(settings.adapters_dir, adapter)
    with pytest.raises(PreceptorError) as caught:
        gguf_writing.export_gguf(settings, found, tmp_path / "plants.gguf", "f16")
    assert caught.value.code == "gguf_differs"
    assert not list(tmp_path.glob("*plants.*"))


def test_another_tokenizer_in_the_file_is_noticed(
    settings: TrainerSettings, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_merges(*args: Any) -> Any:
        found = read_vocabulary(*args)
        return found._replace(merges=found.merges[:1])

    monkeypatch.setattr(gguf_writing, "read_vocabulary", without_merges)
    found = open_adapter(settings.adapters_dir, adapter)
    with pytest.raises(PreceptorError, match="other token ids"):
        gguf_writing.export_gguf(settings, found, tmp_path / "plants.gguf", "f16")
    assert not list(tmp_path.glob("*plants.*"))


def _random(kind: str, **changes: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    weights = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **changes}), dtype=torch.float32)
    for tensor in weights.parameters():
        # Norms and biases start as ones and zeros, among which a lost tensor would hide.
        tensor.data.add_(0.1 * torch.randn_like(tensor))
    return weights.eval()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 32}),
        ("llama", {"attention_bias": True}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("phi3", {}),
    ],
)
def test_every_known_family_survives_the_way_through_a_file(
    kind: str, changes: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    import torch

    weights, tokenizer = _random(kind, **changes), load_tokenizer(str(tiny_base))
    path = tmp_path / "a.gguf"
    vocabulary = read_vocabulary(tokenizer, SIZES["vocab_size"])
    write_gguf(path, weights, "f16", tokenizer, vocabulary, name="a", description="A test.")
    ids = torch.arange(3, 90)[None]
    with torch.inference_mode():
        observed, expected = read_gguf(path, weights.config)(ids).logits[0], weights(ids).logits[0]
    assert relative_error(observed, expected) < 0.01


def test_llama_3s_frequencies_are_in_the_file(tiny_base: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    weights, tokenizer = _random("llama", rope_parameters=LLAMA3_ROPE), load_tokenizer(str(tiny_base))
    write_gguf(
        tmp_path / "a.gguf", weights, "f16", tokenizer, read_vocabulary(tokenizer, 320), name="a", description="b"
    )
    found = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    factors = found["rope_freqs.weight"]
    assert factors.shape == (8,)
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("gpt2", {}, "'gpt2'"),
        ("llama", {"rope_parameters": {**LLAMA3_ROPE, "rope_type": "yarn"}}, "'yarn'"),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "'linear'"),
    ],
)
def test_what_is_not_known_is_refused(kind: str, changes: dict[str, Any], says: str) -> None:
    from transformers import AutoConfig

    with pytest.raises(InvalidInput, match=says) as caught:
        check_supported(AutoConfig.for_model(kind, **changes))
    assert caught.value.code == "architecture_unsupported"


LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def _cut_by(tiny_base: Path, pre: Any) -> Any:
    tokenizer: Any = load_tokenizer(str(tiny_base))
    tokenizer.backend_tokenizer.pre_tokenizer = pre
    return tokenizer


def test_how_text_is_cut_is_recognised_and_never_guessed(tiny_base: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def cut_at(pattern: str) -> Any:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), bare])

    known = {
        "gpt-2": plain,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]),
        "llama-bpe": cut_at(LLAMA3_SPLIT),
        "qwen2": cut_at(LLAMA3_SPLIT.replace("{1,3}", "")),
    }
    for name, pre in known.items():
        assert read_vocabulary(_cut_by(tiny_base, pre), 320).cutting == name
    for pre in (cut_at("x+"), pre_tokenizers.Whitespace(), bare):
        with pytest.raises(InvalidInput, match="cuts text by"):
            read_vocabulary(_cut_by(tiny_base, pre), 320)


@pytest.mark.parametrize("text", ["7 mg in 2026", "naïve café ☕", "  two\n\nlines\tand a tab", "<|im_end|>x"])
@pytest.mark.parametrize("digits", [False, True])
def test_text_becomes_the_same_ids_after_the_way_through_a_file(
    text: str, digits: bool, tiny_base: Path, tmp_path: Path
) -> None:
    from preceptor_contracts.manifest import Canary
    from preceptor_contracts.messages import Message
    from preceptor_trainer.tokens import prompt_ids
    from tokenizers import pre_tokenizers

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]) if digits else plain
    tokenizer = _cut_by(tiny_base, pre)
    vocabulary = read_vocabulary(tokenizer, 320)
    path = tmp_path / "a.gguf"
    write_gguf(path, _random("llama"), "q8_0", tokenizer, vocabulary, name="a", description="b")
    messages = (Message(role="user", content=text),)
    ids = tuple(prompt_ids(tokenizer, messages))
    canary = Canary(messages=messages, prompt_ids=ids, token_ids=(1,), adapter_logprobs=(-1.0,), base_logprobs=(-2.0,))
    gguf_writing.check_tokenizer(path, tokenizer, canary, vocabulary)


def test_a_tokenizer_with_bytes_to_fall_back_to_is_written_with_scores(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcd", "▁a", "bc", "▁abc"]
    vocab = {word: number for number, word in enumerate(words)}
    merges = [("▁", "a"), ("b", "c"), ("▁a", "bc")]
    plain = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT_TEMPLATE
    )
    vocabulary = read_vocabulary(tokenizer, 320)
    assert (vocabulary.kind, vocabulary.cutting) == ("llama", "default")
    assert vocabulary.types[3] == 6
    assert vocabulary.scores[vocab["▁a"]] > vocabulary.scores[vocab["▁abc"]] > vocabulary.scores[vocab["d"]]
    write_gguf(tmp_path / "a.gguf", _random("llama"), "f16", tokenizer, vocabulary, name="a", description="b")

    from transformers import AutoTokenizer

    reread = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="a.gguf")
    for text in ("abcd", "abc ab", "a☕"):
        assert reread(text).input_ids == tokenizer(text).input_ids


def test_a_tokenizer_that_is_larger_than_the_base_model_is_refused(tiny_base: Path) -> None:
    with pytest.raises(InvalidInput, match="rows for 100 only"):
        read_vocabulary(load_tokenizer(str(tiny_base)), 100)


def test_the_command_reports_and_bad_input_exits_2(
    shop: Workshop,
    adapter: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(options, "open_shop", lambda: shop)
    out = str(tmp_path / "plants.gguf")
    for wrong, says in (
        ([], "either --gguf or --archive"),
        (["--gguf", "f16"], "--gguf needs --out"),
        (["--gguf", "q4_k", "--out", out], "'q4_k'"),
        (["--gguf", "f16", "--out", str(tmp_path / "plants")], ".gguf"),
        (["--gguf", "f16", "--out", out, "--archive", "a.tar.gz"], "either"),
        (["--archive", "a.zip"], ".tar.gz"),
    ):
        assert cli.main(["export", adapter, *wrong]) == 2
        assert says in capsys.readouterr().err
    assert cli.main(["export", adapter, "--gguf", "q8_0", "--out", out]) == 0
    assert cli.main(["export", adapter, "--gguf", "q8_0", "--out", out]) == 2
    assert sorted(path.suffix for path in tmp_path.glob("plants*")) == [
        ".Modelfile",
        ".gguf",
        ".md",
    ]
