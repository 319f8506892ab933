"""The page: composes the tabs, owns the gateway's client, and keeps the browser on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from preceptor_contracts.errors import PreceptorError
from starlette.datastructures import MutableHeaders
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preceptor_ui import chat, multiple_choice
from preceptor_ui.catalogue import Catalogue
from preceptor_ui.chat import ChatTab, Stops, Updates
from preceptor_ui.client import Gateway
from preceptor_ui.fragments import HEADER, Notice
from preceptor_ui.multiple_choice import McqTab
from preceptor_ui.settings import Settings

STYLE = Path(__file__).with_name("style.css")
# The browser itself refuses what leaves this machine, whatever an answer contains. Gradio's widgets need 'unsafe-eval'.
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class PageHeaders:
    """ASGI middleware that puts `HEADERS` on every answer and leaves streams alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, sent if scope["type"] == "http" else send)


def create_app(settings: Settings) -> FastAPI:
    """Builds the whole UI; reads no environment and speaks to nobody yet.

    The app's `state.end_pages()` ends the streams of open pages, which would outlast a shutdown.
    """
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await gateway.aclose()

    app = FastAPI(title="Preceptor UI", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(PageHeaders)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    stops = Stops()
    gr.mount_gradio_app(
        app,
        build_page(gateway, stops),
        path="/",
        server_name=settings.host,
        server_port=settings.port,
        footer_links=[],
        # Would keep every question in the browser, with an offer to send it to a public hub.
        run_history=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        show_error=False,
        max_file_size="1kb",
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css_paths=STYLE,
    )

    def end_pages() -> None:
        stops.end_all()
        for route in app.routes:
            if isinstance(route, Mount) and isinstance(route.app, gr.routes.App):
                route.app.stop_event.set()

    app.state.end_pages = end_pages
    return app


def build_page(gateway: Gateway, stops: Stops) -> gr.Blocks:
    """Lays out and connects the page."""
    page = gr.Blocks(title="Preceptor", analytics_enabled=False)
    # Gradio's default lets one reader at a time have an answer; limits are the gateway's business.
    page.queue(default_concurrency_limit=None, api_open=False)
    with page:
        catalogue = gr.State(Catalogue())
        gr.HTML(HEADER)
        with gr.Tabs():
            with gr.Tab("Chat"):
                chat_tab = chat.lay_out()
            with gr.Tab("Multiple choice"):
                mcq_tab = multiple_choice.lay_out()
        chat.wire_up(chat_tab, gateway, stops, catalogue)
        multiple_choice.wire_up(mcq_tab, gateway, catalogue)
        _fill_from_gateway(page, gateway, catalogue, chat_tab, mcq_tab)
        page.unload(stops.end_of)
    return page


def _fill_from_gateway(
    page: gr.Blocks, gateway: Gateway, catalogue: gr.State, chat_tab: ChatTab, mcq_tab: McqTab
) -> None:
    """Loads the served names when the page opens and when Refresh is pressed."""

    async def fill(known: Catalogue, chat_choice: str | None, mcq_choice: str | None) -> Updates:
        notice: Notice | None = None
        try:
            known = await gateway.catalogue()
        except PreceptorError as error:
            notice = Notice.of(error)
        return {
            catalogue: known,
            **chat_tab.choose(known, chat_choice),
            **mcq_tab.choose(known, mcq_choice),
            **chat_tab.report(notice),
            **mcq_tab.report(notice),
        }

    filled: list[Any] = [
        catalogue,
        chat_tab.served,
        *chat_tab.chosen,
        chat_tab.problem,
        mcq_tab.served,
        mcq_tab.about,
        mcq_tab.problem,
    ]
    gr.on(
        [page.load, chat_tab.refresh.click, mcq_tab.refresh.click],
        fill,
        inputs=[catalogue, chat_tab.served, mcq_tab.served],
        outputs=filled,
        show_progress="hidden",
        api_visibility="private",
    )


def _theme() -> gr.themes.Base:
    colours, sizes = gr.themes.colors, gr.themes.sizes
    theme = gr.themes.Default(
        primary_hue=colours.teal,
        secondary_hue=colours.teal,
        neutral_hue=colours.slate,
        radius_size=sizes.radius_md,
        # Both come with Gradio and are served from here; their weight 600 is a stub of a few letters.
        font=(gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=(gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "monospace"),
    )
    # The default's white on teal-500 and slate-400 on white are too faint to read.
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
    )
