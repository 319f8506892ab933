"""A Modelfile for Ollama: the system message, stop tokens and, where it is ChatML, the chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preceptor_contracts.domains import Domain, find_domain
from preceptor_contracts.errors import InvalidInput
from preceptor_contracts.manifest import Manifest

from preceptor_trainer.registry.model_card import system_message
from preceptor_trainer.settings import TrainerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHATML = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
_CHATML_IN_GO = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)
"""Ollama's templates are Go's, and cannot be made of Jinja's by rule; ChatML is what SmolLM2 and Qwen2 speak."""


def modelfile(settings: TrainerSettings, manifest: Manifest, tokenizer: PreTrainedTokenizerBase, file: str) -> str:
    """Writes the Modelfile.

    Args:
        settings: Say where the domain is.
        manifest: The adapter's.
        tokenizer: The base model's.
        file: Name of the GGUF file, which lies beside it.
    """
    domain: Domain | None
    try:
        domain = find_domain(settings.domains_dir, manifest.domain).domain
    except InvalidInput:
        domain = None
    system = system_message(manifest, domain)
    lines = [f"# {manifest.adapter}: ollama create {manifest.domain} -f <this file>", f"FROM ./{file}"]
    if _is_chatml(tokenizer):
        lines.append(f'TEMPLATE """{_CHATML_IN_GO}"""')
    else:
        lines.append("# No TEMPLATE: Ollama takes the one that it recognises in the file; compare it with the base's.")
    if '"""' in system:
        lines.append("# No SYSTEM: the domain's system message holds three quotes in a row, which no Modelfile can.")
    elif system:
        lines.append(f'SYSTEM """{system}"""')
    stops = [str(tokenizer.convert_ids_to_tokens(token)) for token in manifest.stop_token_ids]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n"


def _is_chatml(tokenizer: PreTrainedTokenizerBase) -> bool:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == _CHATML
