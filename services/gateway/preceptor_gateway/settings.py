"""Every choice about the gateway, in one object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from preceptor_contracts.errors import PrerequisiteError
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from preceptor_gateway.engine_urls import read_urls


class GatewaySettings(BaseSettings):
    """Read from the environment and `.env`."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", env_file=".env", extra="ignore", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    api_key: SecretStr = SecretStr("")
    """Bearer key with scope `use`."""
    admin_key: SecretStr = SecretStr("")
    """Bearer key with scopes `use` and `admin`."""
    engine_urls: Annotated[str, Field(validation_alias="ENGINE_URLS")] = "http://127.0.0.1:8001"
    """Comma-separated; the gateway spreads requests over them."""
    hand_off_engine: str = ""
    """Which of the engines makes way for a training (`--hand-off`), by its URL; empty: none is known to."""
    engine_api_key: Annotated[SecretStr, Field(validation_alias="ENGINE_API_KEY")] = SecretStr("")
    engine_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Longest silence of the engine that is waited for, in seconds."""
    domains_dir: Annotated[Path, Field(validation_alias="DOMAINS_DIR")] = Path("domains")
    adapters_dir: Annotated[Path, Field(validation_alias="ADAPTERS_DIR")] = Path("data/adapters")
    data_dir: Path = Path("data/gateway")
    """The gateway's own store: which adapter each alias points at."""
    default_domain: str = ""
    """Asked where a request names none; empty means that a request must name one unless there is only one."""
    reconcile_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Pause between looks at what the engine serves."""
    batch_concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    """Prompts of one batch (`/v1/mcq`, `/generate/batch`) in the engine at a time."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1_048_576
    max_messages: Annotated[int, Field(ge=1)] = 256
    """Of a conversation."""
    database_url: SecretStr = SecretStr("sqlite:///data/gateway/gateway.db")
    """Where keys are: SQLite, or `postgresql+psycopg://...`; it may hold a password."""
    limits_url: SecretStr = SecretStr("memory://")
    """Where minutes are counted: in memory, or `redis://...`; it may hold a password."""
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    """Of keys that name no limit of their own; 0 is none."""
    tokens_per_minute: Annotated[int, Field(ge=0)] = 0
    """Of keys that name no limit of their own; 0 is none."""
    concurrent_requests: Annotated[int, Field(ge=0)] = 0
    """Of keys that name no limit of their own; 0 is none."""
    log_level: Literal["debug", "info", "warning"] = "info"
    """`info` writes a line a request."""
    cors_origins: str = ""
    """Comma-separated origins that browsers may call from; empty means none."""
    log_prompts: Annotated[bool, Field(validation_alias="LOG_PROMPTS")] = False
    """Prompts and answers may stand in logs and traces."""
    otel_endpoint: Annotated[str, Field(validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")] = ""
    """Base URL of an OTLP collector (HTTP); empty means no traces."""
    otel_headers: Annotated[SecretStr, Field(validation_alias="OTEL_EXPORTER_OTLP_HEADERS")] = SecretStr("")
    """`name=value` pairs for the collector, separated by commas."""
    otel_service_name: Annotated[str, Field(validation_alias="OTEL_SERVICE_NAME")] = "preceptor-gateway"
    langsmith_tracing: Annotated[bool, Field(validation_alias="LANGSMITH_TRACING")] = False
    """LangChain's runnables are sent to LangSmith."""
    langsmith_api_key: Annotated[SecretStr, Field(validation_alias="LANGSMITH_API_KEY")] = SecretStr("")
    langsmith_endpoint: Annotated[str, Field(validation_alias="LANGSMITH_ENDPOINT")] = "https://api.smith.langchain.com"
    langsmith_project: Annotated[str, Field(validation_alias="LANGSMITH_PROJECT")] = "preceptor"

    @field_validator("engine_urls")
    @classmethod
    def _are_urls(cls, text: str) -> str:
        read_urls(text)
        return text

    @field_validator("hand_off_engine")
    @classmethod
    def _one_of_its_engines(cls, text: str, info: ValidationInfo) -> str:
        if not text or "engine_urls" not in info.data:
            return text
        (url, *more) = read_urls(text)
        if more or url not in read_urls(info.data["engine_urls"]):
            raise ValueError("it is none of ENGINE_URLS (in Compose: STACK_HAND_OFF_ENGINE and STACK_ENGINE_URLS)")
        return url

    def require_keys(self) -> None:
        """Refuses to serve without keys.

        Raises:
            PrerequisiteError: A key is missing or both are the same.
        """
        for name, key in (("GATEWAY_API_KEY", self.api_key), ("GATEWAY_ADMIN_KEY", self.admin_key)):
            if not key.get_secret_value():
                raise PrerequisiteError(
                    f"{name} is empty.", hint="Run `make setup`; it makes keys where .env has none."
                )
        if self.api_key.get_secret_value() == self.admin_key.get_secret_value():
            raise PrerequisiteError(
                "GATEWAY_API_KEY and GATEWAY_ADMIN_KEY are the same.", hint="Give them different values in .env."
            )


def unknown_settings() -> list[str]:
    """Names in the environment and `.env` that look like its settings and are none: misspelt, or of old."""
    prefix = str(GatewaySettings.model_config["env_prefix"])
    known = {
        f"{prefix}{name}".upper() for name, field in GatewaySettings.model_fields.items() if not field.validation_alias
    }
    given = {name.upper() for name in (*os.environ, *dotenv_values(".env"))}
    return sorted(name for name in given - known if name.startswith(prefix))
