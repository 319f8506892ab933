"""Every choice about the engine, in one object."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from preceptor_contracts.base_models import EMBEDDED
from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

LoraRank = Annotated[Literal[1, 8, 16, 32, 64, 128, 256, 320, 512], BeforeValidator(int)]
"""The ranks that vLLM 0.32 accepts as a limit (its config/lora.py). A literal matches exactly, so text becomes int."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class EngineSettings(BaseSettings):
    """Read from the environment and `.env`."""

    model_config = SettingsConfigDict(env_prefix="ENGINE_", env_file=".env", extra="ignore", frozen=True)

    base_model: Annotated[str, Field(validation_alias="BASE_MODEL", min_length=1)] = EMBEDDED
    """`embedded`, a folder, or a Hugging Face id, which `@` and a commit may follow."""
    base_models_dir: Annotated[Path, Field(validation_alias="BASE_MODELS_DIR")] = Path("data/base-models")
    """Where the embedded base model is materialised."""
    host: str = "127.0.0.1"
    """Loopback: the engine has no admin scope of its own, so nobody but the gateway may reach it."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8001
    api_key: SecretStr = SecretStr("")
    """Shared with the gateway; empty means no check."""
    adapters_dir: Annotated[Path, Field(validation_alias="ADAPTERS_DIR")] = Path("data/adapters")
    """Where the trainer puts adapters, and the lock by which it asks for the GPU."""
    hand_off: bool = False
    """Make way for a training that asks for the GPU, and come back when it ends."""
    drain_s: Annotated[int, Field(ge=0, le=120)] = 30
    """Seconds that answers under way get when the engine makes way."""
    dtype: Dtype = "auto"
    """`auto` takes bfloat16 where the processor has units for it, else float32; on a GPU vLLM decides."""
    quantization: Literal["none", "fp8"] = "none"
    """How the base weights are held: `fp8` is 8 bits, made as they are loaded; GPU only."""
    max_model_len: Annotated[int, Field(ge=256)] = 2048
    """Context length, in tokens."""
    max_lora_rank: LoraRank = 16
    """The smallest that fits your recipes: over-sizing costs speed (vllm#22782)."""
    max_loras: Annotated[int, Field(ge=1)] = 2
    """Adapters that can share a batch: one promoted and one on trial."""
    max_cpu_loras: Annotated[int, Field(ge=1)] = 8
    """Adapters kept in memory; more are read from disk again when asked."""
    kv_cache_gib: Annotated[int, Field(ge=1)] = 2
    """Memory for the KV cache, in GiB; CPU only."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Share of GPU memory that vLLM takes; GPU only."""
