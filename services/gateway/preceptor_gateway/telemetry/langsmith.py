"""LangSmith: on where the gateway's settings say so, off in every other case, whatever else the environment holds.

Left alone, langsmith also wakes to older variables (`LANGCHAIN_TRACING_V2`) and takes keys from a profile file in the
home directory. Prompts must not leave because of something that somebody once set for another program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import langsmith
from preceptor_contracts.errors import PrerequisiteError

if TYPE_CHECKING:
    from preceptor_gateway.settings import GatewaySettings


def configure(settings: GatewaySettings) -> None:
    """Turns LangSmith on or off for this process.

    Raises:
        PrerequisiteError: It is turned on and has no key.
    """
    if not settings.langsmith_tracing:
        langsmith.configure(enabled=False, client=None)
        return
    key = settings.langsmith_api_key.get_secret_value()
    if not key:
        raise PrerequisiteError(
            "LANGSMITH_TRACING is on and LANGSMITH_API_KEY is empty.",
            hint="Set the key, or LANGSMITH_TRACING=false.",
        )
    hide = not settings.log_prompts
    client = langsmith.Client(
        api_key=key, api_url=settings.langsmith_endpoint, hide_inputs=hide, hide_outputs=hide, tracing_mode="langsmith"
    )
    langsmith.configure(enabled=True, client=client, project_name=settings.langsmith_project)
