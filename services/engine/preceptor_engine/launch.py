"""Turns settings into vLLM's command line and environment."""

from __future__ import annotations

import sys
from typing import NamedTuple

from preceptor_contracts.base_models import EMBEDDED, UNPINNED, base_model_source, is_materialised, split_revision
from preceptor_contracts.errors import PrerequisiteError
from preceptor_contracts.served_names import RAW_BASE

from preceptor_engine.hardware import cpu_dtype, cpu_flags, has_cpp_compiler, has_gpu, is_cpu_build, usable_cores
from preceptor_engine.settings import EngineSettings

LORA_TARGET_MODULES = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    # Phi-3 fuses five of them into these two.
    *("qkv_proj", "gate_up_proj"),
)
"""Every linear layer but the head; recipes may use these and no others."""
QUANTIZATION = {"fp8": "fp8_per_channel"}
"""vLLM 0.32's names for quantising 16-bit weights as they are loaded; its plain `fp8` no longer does that."""


class Launch(NamedTuple):
    """What to execute."""

    argv: list[str]
    env: dict[str, str]
    """Added to the caller's environment."""


def build_launch(
    settings: EngineSettings, *, gpu: bool, flags: frozenset[str], cores: list[int], compiles: bool
) -> Launch:
    """Builds the launch of vLLM's OpenAI server; pure, so that a test can read every flag.

    Raises:
        PrerequisiteError: The embedded base model is wanted and was not materialised, or quantisation without a GPU.
    """
    if settings.base_model == EMBEDDED and not is_materialised(settings.base_models_dir):
        raise PrerequisiteError(
            f"The embedded base model is not in {str(settings.base_models_dir)!r}.",
            hint="Run `make setup` or `preceptor-engine materialise`.",
        )
    dtype = settings.dtype if gpu or settings.dtype != "auto" else cpu_dtype(flags)
    argv = [
        # The console script of the CPU wheel fails (no metadata for 'vllm'); the module is the same server.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *_base_model(base_model_source(settings.base_model, settings.base_models_dir)),
        *("--served-model-name", RAW_BASE),
        *("--host", settings.host, "--port", str(settings.port)),
        *("--dtype", dtype),
        *("--max-model-len", str(settings.max_model_len)),
        "--enable-lora",
        *("--max-lora-rank", str(settings.max_lora_rank)),
        *("--max-loras", str(settings.max_loras)),
        *("--max-cpu-loras", str(settings.max_cpu_loras)),
        # Adapters never touch the head (`plan` sees to it). Left in, its LoRA wrapper kills the CPU engine on the
        # first prompt_logprobs request: punica_cpu.add_lora_logits takes one row a request, not one a token.
        *("--lora-target-modules", *LORA_TARGET_MODULES),
        # Questions on one passage, and every question of a domain, share their prompt's beginning.
        "--enable-prefix-caching",
        # Report the cached share in `usage`.
        "--enable-prompt-tokens-details",
        # Tell each answer's time in the queue; vLLM's own series knows it by engine only, not by adapter.
        "--enable-per-request-metrics",
        # Sampling defaults are ours: a base model's generation_config must not change what an exam measured.
        *("--generation-config", "vllm"),
        # Prompts are people's questions; the gateway logs what may be logged.
        "--no-enable-log-requests",
        "--disable-uvicorn-access-log",
    ]
    env = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if settings.api_key.get_secret_value():
        # By environment, not by flag: a command line is visible to every user of the machine.
        env["VLLM_API_KEY"] = settings.api_key.get_secret_value()
    if settings.base_model == EMBEDDED:
        env["HF_HUB_OFFLINE"] = "1"
    if settings.hand_off:
        # For what is still under way when the launcher tells it to end.
        argv += ["--shutdown-timeout", str(settings.drain_s)]
    argv += _quantization(settings, gpu=gpu)
    if gpu:
        argv += ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
    else:
        # Only whole blocks are shared: of the CPU's default 128 tokens few domain prompts fill one. 32 is its least.
        argv += ["--block-size", "32"]
        env |= _cpu_environment(settings, cores, compiles=compiles)
    return Launch(argv, env)


def _cpu_environment(settings: EngineSettings, cores: list[int], *, compiles: bool) -> dict[str, str]:
    env = {"VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib)}
    if len(cores) <= 2 and cores:
        # vLLM keeps one core for itself; of two that is half: 35 -> 57 tokens/s at concurrency 16 (FACTS).
        env["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    if not compiles:
        # vLLM's sampler compiles C++ at the first request for given tokens' logprobs, which every canary is, and its
        # worker ends where that fails. Not compiled, 64 such requests took 2.0 to 2.8 s in place of 2.1 to 2.4.
        env["TORCH_COMPILE_DISABLE"] = "1"
    return env


def _base_model(source: str) -> list[str]:
    name, revision = split_revision(source)
    if revision == UNPINNED:
        return ["--model", name]
    # With the tokenizer its chat template is pinned: nothing that changes on the hub changes the prompts.
    return ["--model", name, "--revision", revision, "--tokenizer-revision", revision]


def _quantization(settings: EngineSettings, *, gpu: bool) -> list[str]:
    if settings.quantization == "none":
        return []
    if not gpu:
        raise PrerequisiteError(
            f"ENGINE_QUANTIZATION={settings.quantization} needs a GPU, and the engine found none.",
            hint="Set ENGINE_QUANTIZATION=none in .env.",
        )
    return ["--quantization", QUANTIZATION[settings.quantization]]


def launch_here(settings: EngineSettings) -> Launch:
    """`build_launch` for this machine."""
    gpu = has_gpu() and not is_cpu_build()
    return build_launch(settings, gpu=gpu, flags=cpu_flags(), cores=usable_cores(), compiles=has_cpp_compiler())
