"""Who is measured, each as its users run it: one worker, and what its own documentation asks for in production."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.gateway import upstream
from bench.gateway.machine import BENCH_PYTHON, OUR_PYTHON, ROOT, BenchFailed, free_port
from bench.gateway.processes import Command, status_of

KEY = "sk-bench-0123456789abcdef0123456789abcdef"
"""Bearer key of every request; `sk-` because LiteLLM wants that."""
PATH = "/v1/chat/completions"
QUESTION = "How many patients live in Leeds?"
OURS, DIRECT, LITELLM, ROUTER = "our gateway", "direct", "LiteLLM proxy", "vllm-router"
_ENOUGH = str(10**9)
"""A limit that is counted and never reached."""

_LITELLM = """\
model_list:
  - model_name: {name}
    litellm_params:
      model: openai/{name}
      api_base: http://127.0.0.1:{port}/v1
      api_key: none
general_settings:
  master_key: {key}
litellm_settings:
  request_timeout: 600
  set_verbose: false
  json_logs: true
"""


@dataclass(frozen=True)
class Contestant:
    """One way to the upstream."""

    name: str
    served: str
    """What a request asks for as `model`."""
    does: str
    """What it does with a request, for the report."""
    shown: str
    """How it is started, for the report."""
    health: str
    asks_for_key: bool
    command: Callable[[Path, int, int, int], Command] | None
    """Makes the command from a folder, its port, the upstream's port and a core; None where there is no process."""

    def body(self, *, stream: bool) -> bytes:
        """The request that everybody gets; only the name asked for differs."""
        body = {"model": self.served, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        return json.dumps(body | ({"stream": True} if stream else {})).encode()


def _our_gateway(folder: Path, port: int, engine_port: int, core: int) -> Command:
    settings = {
        "GATEWAY_PORT": str(port),
        "ENGINE_URLS": f"http://127.0.0.1:{engine_port}",
        "GATEWAY_API_KEY": KEY,
        "GATEWAY_ADMIN_KEY": f"{KEY}-admin",
        "GATEWAY_DATA_DIR": str(folder / "gateway"),
        "GATEWAY_DATABASE_URL": f"sqlite:///{folder / 'gateway.db'}",
        "GATEWAY_REQUESTS_PER_MINUTE": _ENOUGH,
        "GATEWAY_TOKENS_PER_MINUTE": str(10**12),
        "GATEWAY_CONCURRENT_REQUESTS": "100000",
        "DOMAINS_DIR": str(ROOT / "domains"),
        "ADAPTERS_DIR": str(folder / "adapters"),
    }
    (folder / "adapters").mkdir(exist_ok=True)
    return Command([str(OUR_PYTHON), "-m", "preceptor_gateway"], settings, folder, folder / "gateway.log", core)


def _litellm(folder: Path, port: int, engine_port: int, core: int) -> Command:
    config = folder / "litellm.yaml"
    config.write_text(_LITELLM.format(name=upstream.ENGINE_NAME, port=engine_port, key=KEY))
    program = str(BENCH_PYTHON.with_name("litellm"))
    where = ("--host", "127.0.0.1", "--port", str(port))
    # The cost map would be fetched from the internet at start; the wheel has a copy.
    settings = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    arguments = [program, "--config", str(config), *where, "--num_workers", "1"]
    return Command(arguments, settings, folder, folder / "litellm.log", core)


def _router(folder: Path, port: int, engine_port: int, core: int) -> Command:
    program = str(BENCH_PYTHON.with_name("vllm-router"))
    where = ("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()))
    arguments = [program, *where, "--worker-urls", f"http://127.0.0.1:{engine_port}", "--log-level", "warning"]
    return Command(arguments, {}, folder, folder / "router.log", core)


CONTESTANTS = (
    Contestant(DIRECT, upstream.ENGINE_NAME, "nothing", "no process", "/health", False, None),
    Contestant(
        OURS,
        "sql:base",
        "key, limits (counted, never reached), domain prompt, metrics, a log line a request",
        "`python -m preceptor_gateway`, limits of 10^9 requests and 10^12 tokens a minute",
        "/health",
        True,
        _our_gateway,
    ),
    Contestant(
        LITELLM,
        upstream.ENGINE_NAME,
        "key",
        "`litellm --config ... --num_workers 1`, `master_key` set, `LITELLM_LOG=ERROR`, `LITELLM_MODE=PRODUCTION`",
        "/health/liveliness",
        True,
        _litellm,
    ),
    Contestant(
        ROUTER,
        upstream.ENGINE_NAME,
        "no key, no prompt",
        "`vllm-router --worker-urls ... --log-level warning`, else its defaults",
        "/health",
        False,
        _router,
    ),
)


def by_name(name: str) -> Contestant:
    """Finds a contestant."""
    return next(one for one in CONTESTANTS if one.name == name)


def headers(*, with_key: bool = True) -> dict[str, str]:
    """Headers of every request."""
    return {"Content-Type": "application/json", **({"Authorization": f"Bearer {KEY}"} if with_key else {})}


def prove(contestant: Contestant, base: str) -> None:
    """Holds a contestant to what the report says it does.

    Raises:
        BenchFailed: It answers wrongly, lets a stranger in, or ours works without its limits.
    """
    url, body = base + PATH, contestant.body(stream=False)
    status, got, answer = status_of(url, headers(), body)
    if status != 200 or b"Leeds" not in answer:
        raise BenchFailed(f"{contestant.name} answered {status} to a plain question: {answer[:300]!r}")
    if contestant.asks_for_key and (stranger := status_of(url, headers(with_key=False), body)[0]) != 401:
        raise BenchFailed(f"{contestant.name} answered {stranger} to a request without a key; it must be 401.")
    if contestant.name == OURS:
        missing = {"x-ratelimit-limit-requests", "x-ratelimit-limit-tokens", "x-request-id"} - set(got)
        if missing:
            raise BenchFailed(f"Our gateway's answer lacks {sorted(missing)}: its limits are not on.")
