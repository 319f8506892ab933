"""How GGUF lays out each family of base models: its keys, its tensors' names, order and number format.

Source: the GGUF specification (ggml-org/ggml, docs/gguf.md) and the readers of llama.cpp and transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from preceptor_contracts.errors import InvalidInput

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PretrainedConfig

Quantisation = Literal["f16", "q8_0"]
_BLOCK = 32
"""Numbers that share a scale in Q8_0; a row that is no multiple of it stays float16."""
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "phi3": "phi3"}
"""transformers' `model_type` to GGUF's `general.architecture`."""


class Stored(NamedTuple):
    """One tensor of the file."""

    name: str
    tensor: Any
    """Float32, in GGUF's order of rows."""
    kind: Any
    """`gguf.GGMLQuantizationType`."""


def check_supported(config: PretrainedConfig) -> str:
    """Returns GGUF's name for a base model's architecture.

    Raises:
        InvalidInput: This exporter does not know it, or one of its options.
    """
    kind = str(config.model_type)
    if kind not in ARCHITECTURES:
        raise InvalidInput(
            f"GGUF export does not know architecture {kind!r}; it knows {', '.join(sorted(ARCHITECTURES))}.",
            code="architecture_unsupported",
            hint="Run `preceptor-trainer merge`, and llama.cpp's own converter on the folder that it makes.",
        )
    rope = rope_of(config)
    scaling = str(rope.get("rope_type", "default"))
    known = {"default", "llama3"} if ARCHITECTURES[kind] == "llama" else {"default"}
    if scaling not in known:
        raise InvalidInput(
            f"GGUF export does not know rope scaling {scaling!r} of architecture {kind!r}.",
            code="architecture_unsupported",
            hint="Run `preceptor-trainer merge`, and llama.cpp's own converter on the folder that it makes.",
        )
    return ARCHITECTURES[kind]


def rope_of(config: PretrainedConfig) -> dict[str, Any]:
    """Returns the parameters of the rotary embedding as transformers 5 spells them."""
    return dict(getattr(config, "rope_parameters", None) or {})


def head_size(config: PretrainedConfig) -> int:
    """Width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def add_shape(writer: GGUFWriter, config: PretrainedConfig, architecture: str) -> None:
    """Writes the keys from which a reader builds the network."""
    rope = rope_of(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_rope_dimension_count(int(head_size(config) * float(rope.get("partial_rotary_factor", 1.0))))
    if head_size(config) * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_size(config))
        writer.add_value_length(head_size(config))
    if architecture == "phi3":
        # llama.cpp tells Phi-3 from Phi-4 by a window of zero.
        writer.add_sliding_window(int(getattr(config, "sliding_window", None) or 0))
        original = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(original))


def tensors(weights: Any, architecture: str, quantisation: Quantisation) -> Iterator[Stored]:
    """Yields every tensor, one at a time, so that no second copy of the weights is ever in memory.

    Raises:
        InvalidInput: The base model has a tensor that GGUF has no name for.
    """
    import gguf

    config = weights.config
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[architecture], config.num_hidden_layers)
    state = weights.state_dict()
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise InvalidInput(
                f"GGUF has no name for tensor {name!r} of architecture {architecture!r}.",
                code="architecture_unsupported",
            )
        if architecture == "llama":
            tensor = _reorder(name, tensor, config)
        yield Stored(stored, tensor.float(), _kind(tensor, quantisation))
    factors = _rope_factors(config)
    if factors is not None:
        yield Stored("rope_freqs.weight", factors, gguf.GGMLQuantizationType.F32)


def _kind(tensor: Any, quantisation: Quantisation) -> Any:
    import gguf

    if tensor.dim() < 2:
        return gguf.GGMLQuantizationType.F32
    if quantisation == "q8_0" and tensor.shape[-1] % _BLOCK == 0:
        return gguf.GGMLQuantizationType.Q8_0
    return gguf.GGMLQuantizationType.F16


def _reorder(name: str, tensor: Any, config: PretrainedConfig) -> Any:
    """Puts the rows of q and k into the order in which llama.cpp rotates them.

    transformers rotates the first half of a head against the second, llama.cpp each row against its neighbour.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _rope_factors(config: PretrainedConfig) -> Any:
    """What Llama 3 divides each rotary frequency by; GGUF stores it as a tensor. None where there is no scaling."""
    rope = rope_of(config)
    if rope.get("rope_type", "default") != "llama3":
        return None
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    size = head_size(config)
    plain = 1.0 / float(rope["rope_theta"]) ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return plain / scaled
