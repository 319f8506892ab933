"""Every choice about this process, in one object; how to train is the recipe's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from preceptor_contracts.base_models import EMBEDDED
from preceptor_contracts.errors import InvalidInput, PrerequisiteError
from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

REPORTERS = ("tensorboard", "wandb", "mlflow")
"""What training metrics can be sent to; names of their packages, and transformers' names for them."""


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
    generated_dir: Path = Path("data/generated")
    """Where `generate` keeps candidates and `review.csv`, a folder a domain."""
    generator_url: AnyHttpUrl | None = None
    """OpenAI-compatible endpoint that writes candidates, mostly ending in /v1; documents are sent there."""
    generator_name: Annotated[str, Field(min_length=1)] | None = None
    """Served name to ask there."""
    generator_api_key: SecretStr | None = None
    """Its bearer key; none for endpoints that want none."""
    generator_requests_per_minute: Annotated[float, Field(ge=0)] = 60
    """Requests begun a minute; 0: no limit."""
    generator_concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Requests under way at once."""
    generator_timeout_s: Annotated[float, Field(gt=0)] = 120
    """Longest wait for an answer, in seconds."""
    report_to: str = "tensorboard"
    """Where metrics go beside the run's events: `tensorboard`, `wandb`, `mlflow`, several with commas, or `none`."""

    @field_validator("generator_url", "judge_url")
    @classmethod
    def _no_key_in_the_url(cls, url: AnyHttpUrl | None, info: ValidationInfo) -> AnyHttpUrl | None:
        # The URL is not kept secret: its host is told, and libraries log the rest.
        if url and (url.username or url.password or url.query):
            key = f"TRAINER_{str(info.field_name).removesuffix('_url').upper()}_API_KEY"
            raise ValueError(f"holds a user name, a password or a query; a key belongs in {key}")
        return url

    @field_validator("generator_api_key", "judge_api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None:
            return None
        stripped = key.get_secret_value().strip()
        # The HTTP client would refuse it later, with the whole header in its message.
        if not re.fullmatch(r"[!-~]+", stripped):
            raise ValueError("holds white space or letters that no key has")
        return SecretStr(stripped)

    @property
    def reporters(self) -> tuple[str, ...]:
        """The names in `report_to`."""
        return () if self.report_to == "none" else tuple(name.strip() for name in self.report_to.split(","))

    @field_validator("report_to")
    @classmethod
    def _are_reporters(cls, text: str) -> str:
        names = [name.strip() for name in text.split(",")]
        if names != ["none"] and (unknown := [name for name in names if name not in REPORTERS]):
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(REPORTERS)}; or say none")
        return text.strip()

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

    def generator(self) -> tuple[AnyHttpUrl, str]:
        """Returns the generator's URL and served name.

        Raises:
            PrerequisiteError: One of them is not set.
        """
        if self.generator_url is None or self.generator_name is None:
            missing = "TRAINER_GENERATOR_URL" if self.generator_url is None else "TRAINER_GENERATOR_NAME"
            raise PrerequisiteError(
                f"{missing} is not set, so nobody can be asked for candidates.",
                hint="Set TRAINER_GENERATOR_URL, TRAINER_GENERATOR_NAME and, where it wants one, "
                "TRAINER_GENERATOR_API_KEY; e.g. http://127.0.0.1:8000/v1 and base for Preceptor's own gateway.",
            )
        return self.generator_url, self.generator_name


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
