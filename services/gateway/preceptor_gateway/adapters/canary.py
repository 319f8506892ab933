"""The probe that tells a served adapter from its base model. *Ready* means that it passed, not that a call gave 200."""

from __future__ import annotations

from typing import Any

from preceptor_contracts.manifest import Manifest
from preceptor_contracts.messages import WireMessage, wire

from preceptor_gateway.engine import EngineClient
from preceptor_gateway.problems import Conflict, EngineRefused


class CanaryFailed(Conflict):
    """The engine serves something else than what was trained."""

    default_code = "canary_failed"


async def first_token_logprobs(
    engine: EngineClient, name: str, messages: list[WireMessage], token_ids: tuple[int, ...]
) -> dict[int, float]:
    """Natural-log probabilities of given tokens as the first of the answer, in one prefill.

    No grammar mask, which would renormalise over the choices and lose the honest mass (FACTS).
    """
    body = {
        "model": name,
        "messages": messages,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "logprob_token_ids": list(token_ids),
        "return_tokens_as_token_ids": True,
    }
    return read_logprobs(await engine.post("/v1/chat/completions", body))


def read_logprobs(answer: dict[str, Any]) -> dict[int, float]:
    """Reads the first token's logprobs, by token id, from a chat completion."""
    try:
        entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {int(entry["token"].removeprefix("token_id:")): float(entry["logprob"]) for entry in entries}
    except (LookupError, TypeError, ValueError) as error:
        raise EngineRefused("The engine's answer holds no logprobs by token id.") from error


async def check_canary(engine: EngineClient, manifest: Manifest) -> None:
    """Asks the engine the manifest's canary.

    Raises:
        CanaryFailed: The prompt's token ids or the answer's logprobs are not the trained ones.
    """
    canary = manifest.canary
    messages = wire(canary.messages)
    ids = await engine.tokenize(messages)
    if ids != canary.prompt_ids:
        raise CanaryFailed(
            f"{manifest.adapter!r} was trained on other token ids than the engine makes of the same messages.",
            code="parity_broken",
            hint="Engine and trainer use different base models or chat templates.",
        )
    found = await first_token_logprobs(engine, manifest.adapter, messages, canary.token_ids)
    if missing := set(canary.token_ids) - set(found):
        raise EngineRefused(f"The engine left out the logprobs of tokens {sorted(missing)}.")
    observed = tuple(found[token] for token in canary.token_ids)
    if not canary.passes(observed):
        raise CanaryFailed(
            f"{manifest.adapter!r} is loaded and does not answer as trained: its canary is off by "
            f"{canary.deviation(observed):.3f} nats, where its base model is {canary.separation:.3f} away.",
            hint="The engine may have ignored the adapter, or serves another base model.",
        )
