"""The UI's settings, read from the environment and from `.env` in the working directory; built by `__main__`."""

from __future__ import annotations

from typing import Annotated

from preceptor_contracts.errors import InvalidInput, PrerequisiteError
from preceptor_contracts.frozen import describe
from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

KEY = "GATEWAY_API_KEY"


class Settings(BaseSettings):
    """One per process; passed down, never read again."""

    model_config = SettingsConfigDict(
        env_prefix="UI_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    host: str = "127.0.0.1"
    """Address that the pages listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 7860
    """Port that the pages listen on."""
    gateway_url: AnyHttpUrl = AnyHttpUrl("http://127.0.0.1:8000")
    """Where the gateway is, as this process reaches it."""
    gateway_api_key: Annotated[SecretStr, Field(validation_alias=KEY)]
    """Bearer key with scope `use`; `make setup` writes it."""

    @field_validator("gateway_api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            # The value is a secret and must not be quoted here.
            raise ValueError("must be printable ASCII without spaces")
        return key


def load_settings() -> Settings:
    """Reads the settings.

    Raises:
        PrerequisiteError: There is no key yet.
        InvalidInput: A setting has a value that cannot be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = error.errors(include_url=False)
        ours = [problem for problem in problems if problem["loc"] in {(KEY,), ("gateway_api_key",)}]
        if any(problem["type"] == "missing" for problem in ours):
            raise PrerequisiteError(
                f"{KEY} is not set, so the UI cannot speak to the gateway.",
                hint="Run make setup: it writes one to .env.",
            ) from error
        if ours:
            # Without `from error`: the cause would print the secret.
            raise InvalidInput(
                f"{KEY} must be printable ASCII without spaces.", hint="Run make setup, or mend it in .env."
            ) from None
        raise InvalidInput(
            f"Settings: {describe(error, of_settings=True)}.", hint="Mend UI_HOST, UI_PORT or UI_GATEWAY_URL in .env."
        ) from error
