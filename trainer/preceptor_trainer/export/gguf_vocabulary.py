"""The tokenizer inside a GGUF file: tokens, merges, how text is cut before merging, and the chat template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from preceptor_contracts.errors import InvalidInput

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2", _TEKKEN: "tekken"}
"""Regular expressions of tokenizers, as their `tokenizer.json` spells them, to llama.cpp's names for them."""
SMOLLM, GPT2 = "smollm", "gpt-2"
_SPACE = "\u2581"
"""How such tokenizers write a space."""
_UNRANKED = -1e6
"""Score of a token that no merge makes."""


class Vocabulary(NamedTuple):
    """What readers of GGUF need of a tokenizer."""

    kind: str
    """`gpt2`: BPE over bytes. `llama`: BPE over characters with bytes to fall back to."""
    cutting: str
    """llama.cpp's name for how text is cut before merging: `tokenizer.ggml.pre`."""
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    """Empty for `gpt2`."""


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """Reads a fast tokenizer.

    Args:
        tokenizer: The base model's.
        size: Rows of the embedding; ids above the tokenizer's last are filled up.

    Raises:
        InvalidInput: It is of a kind that this exporter does not know.
    """
    import gguf

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown("it is no fast tokenizer")
    spec: dict[str, Any] = json.loads(backend.to_str())
    parts = spec["model"]
    if parts["type"] != "BPE":
        raise _unknown(f"its kind is {parts['type']!r}")
    kind = "llama" if parts.get("byte_fallback") else "gpt2"
    cutting = "default" if kind == "llama" else _cutting(spec["pre_tokenizer"])
    words = {int(number): word for word, number in tokenizer.get_vocab().items()}
    added = {int(item["id"]): item for item in spec["added_tokens"]}
    if max(words) >= size:
        raise _unknown(f"it has {max(words) + 1} tokens, and the base model rows for {size} only")
    tokens, types = [], []
    for number in range(size):
        word = words.get(number)
        tokens.append(f"[PAD{number}]" if word is None else word)
        if word is None:
            types.append(gguf.TokenType.UNUSED)
        elif number in added:
            types.append(gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED)
        elif kind == "llama" and len(word) == 6 and word.startswith("<0x"):
            types.append(gguf.TokenType.BYTE)
        else:
            types.append(gguf.TokenType.NORMAL)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in parts["merges"]]
    return Vocabulary(
        kind=kind,
        cutting=cutting,
        tokens=tokens,
        types=[int(each) for each in types],
        merges=[" ".join(pair) for pair in pairs],
        scores=_scores(tokens, pairs) if kind == "llama" else [],
    )


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the tokenizer's keys."""
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.cutting)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_merges(vocabulary.merges)
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(int(number))
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id)
    writer.add_add_space_prefix(vocabulary.kind == "llama" and _prefixes_space(tokenizer))
    writer.add_chat_template(str(tokenizer.chat_template))


def _cutting(pre: dict[str, Any] | None) -> str:
    """Recognises how text is cut, from the parts of a `tokenizer.json`; a guess would change token ids unseen."""
    steps = (pre or {}).get("pretokenizers") or ([pre] if pre else [])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return SMOLLM
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        found = _SPLITS.get(str(steps[0]["pattern"].get("Regex")))
        if found and steps[0]["behavior"] == "Isolated" and not steps[0].get("invert"):
            return found
    raise _unknown(f"it cuts text by {json.dumps(pre)[:200]}")


def _prefixes_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a", add_special_tokens=False).input_ids
    return str(tokenizer.convert_ids_to_tokens(ids)[0]).startswith(_SPACE)


def _scores(tokens: list[str], pairs: list[list[str]]) -> list[float]:
    """llama.cpp joins the pair whose joint token scores highest, which is the order of the merges."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks[token]) if token in ranks else _UNRANKED for token in tokens]


def _unknown(why: str) -> InvalidInput:
    return InvalidInput(
        f"GGUF export does not know this base model's tokenizer: {why}.",
        code="tokenizer_unsupported",
        hint="Run `preceptor-trainer merge`, and llama.cpp's own converter on the folder that it makes.",
    )
