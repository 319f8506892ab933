"""Every choice about this process, in one object; how to train is the recipe's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from preceptor_contracts.base_models import EMBEDDED
from preceptor_contracts.errors import InvalidInput, PrerequisiteError
from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainerSettings(BaseSettings):
    """Read from the environment and `.env`."""

    model_config = SettingsConfigDict(
        env_prefix="TRAINER_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    domains_dir: Annotated[Path, Field(validation_alias="DOMAINS_DIR")] = Path("domains")
    """Where the domains' folders are."""
    adapters_dir: Annotated[Path, Field(validation_alias="ADAPTERS_DIR")] = Path("data/adapters")
    """Where adapters are published; gateway and engine read the same folder."""
    runs_dir: Annotated[Path, Field(validation_alias="RUNS_DIR")] = Path("data/runs")
    """Where every run keeps its spec, events, checkpoints and report."""
    base_model: Annotated[str, Field(validation_alias="BASE_MODEL", min_length=1)] = EMBEDDED
    """`embedded`, a folder, or a Hugging Face id; the engine must serve the same."""
    base_models_dir: Annotated[Path, Field(validation_alias="BASE_MODELS_DIR")] = Path("data/base-models")
    """Where the embedded base model is materialised."""
    engine_max_lora_rank: Annotated[int, Field(validation_alias="ENGINE_MAX_LORA_RANK", ge=1)] = 16
    """The engine's limit; a recipe above it would train for nothing."""
    gateway_url: AnyHttpUrl = AnyHttpUrl("http://127.0.0.1:8000")
    """Where the gateway is, as this process reaches it."""
    gateway_admin_key: Annotated[SecretStr | None, Field(validation_alias="GATEWAY_ADMIN_KEY")] = None
    """Bearer key with scope `admin`; needed only by stages that talk to the gateway. `make setup` writes it."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Exam questions asked at once."""
    gateway_patience_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """Longest time that an exam waits for a gateway or an engine that went away, in seconds."""
    guard: Literal["warn", "block", "off"] = "warn"
    """General questions beside the exam: tell of forgetting, let it stand in the way of promotion, or do not ask."""
    judge_url: AnyHttpUrl | None = None
    """OpenAI-compatible endpoint that compares free answers, up to and with `/v1`; empty: none."""
    judge_name: str = ""
    """Served name to ask there."""
    judge_api_key: SecretStr | None = None
    """Bearer key for it; empty: none."""

    def admin_key(self) -> str:
        """Returns the gateway's admin key.

        Raises:
            PrerequisiteError: There is none yet.
        """
        if self.gateway_admin_key is None:
            raise PrerequisiteError(
                "GATEWAY_ADMIN_KEY is not set, so the trainer cannot speak to the gateway.",
                hint="Run `make setup`: it writes one to .env.",
            )
        return self.gateway_admin_key.get_secret_value()


def load_settings() -> TrainerSettings:
    """Reads the settings.

    Raises:
        InvalidInput: A setting has a value that cannot be used.
    """
    try:
        return TrainerSettings()
    except ValidationError as error:
        problems = [f"{'.'.join(str(step) for step in item['loc'])}: {item['msg']}" for item in error.errors()]
        # Without `from error`: its text would hold the values, and one of them is a secret.
        raise InvalidInput(f"Settings: {'; '.join(problems)}.", hint="Correct .env or the environment.") from None
