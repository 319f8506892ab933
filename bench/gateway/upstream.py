"""The engine's stand-in: nginx answers every request with the same bytes, so that the time measured is the proxies'."""

from __future__ import annotations

import json
from pathlib import Path

from bench.gateway.machine import Missing, tool

CHUNKS = 64
"""Events with content in a streamed answer; `[DONE]` comes on top."""
ENGINE_NAME = "base"
"""What the engine calls its base model."""
LUA_MODULES = ("ndk_http_module.so", "ngx_http_lua_module.so")
_MODULE_FOLDERS = (Path("/usr/lib/nginx/modules"), Path("/usr/lib64/nginx/modules"), Path("/usr/share/nginx/modules"))
_TEXT = "The count is made over patients whose city is Leeds , grouped by year of birth ."
_WORDS = tuple(_TEXT.split())
_CREATED = 1_700_000_000

_CONFIG = """\
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  default_type application/json;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_buffer_size 64k;
  client_body_in_single_buffer on;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  init_by_lua_block {{
    local function text(name)
      local file = assert(io.open("{folder}/" .. name, "rb"))
      local all = file:read("*a")
      file:close()
      return all
    end
    whole = text("whole.json")
    events = {{}}
    for event in text("stream.txt"):gmatch("data: [^\\n]*\\n\\n") do events[#events + 1] = event end
  }}
  server {{
    listen 127.0.0.1:{port} reuseport backlog=1024;
    location = /v1/chat/completions {{
      content_by_lua_block {{
        ngx.req.read_body()
        local body = ngx.req.get_body_data() or ""
        if ngx.re.find(body, [["stream"\\s*:\\s*true]], "jo") then
          ngx.header.content_type = "text/event-stream; charset=utf-8"
          for index = 1, #events do
            ngx.print(events[index])
            ngx.flush(true)
          end
        else
          ngx.header.content_length = #whole
          ngx.print(whole)
        end
      }}
    }}
    location = /v1/models {{ return 200 '{models}'; }}
    location = /version {{ return 200 '{{"version":"0.32.0"}}'; }}
    location = /tokenize {{ return 200 '{{"count":3,"max_model_len":2048,"tokens":[1,2,3]}}'; }}
    location = /health {{ return 200 ''; }}
    location / {{ return 404 '{{"error":{{"message":"Not Found","type":"NotFoundError","code":404}}}}'; }}
  }}
}}
"""


def whole_answer() -> bytes:
    """The fixed completion, in vLLM's shape."""
    text = " ".join(_WORDS * 4)
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    usage = {"prompt_tokens": 93, "total_tokens": 157, "completion_tokens": CHUNKS, "prompt_tokens_details": None}
    return _spelled(_answer("chat.completion", choice) | {"usage": usage})


def streamed_answer() -> bytes:
    """The fixed stream: 64 events and `[DONE]`, in vLLM's shape."""
    events = []
    for number in range(CHUNKS):
        last = number == CHUNKS - 1
        delta = {"role": "assistant", "content": ""} if not number else {"content": f" {_WORDS[number % len(_WORDS)]}"}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": "stop" if last else None}
        events.append(b"data: " + _spelled(_answer("chat.completion.chunk", choice)) + b"\n\n")
    return b"".join(events) + b"data: [DONE]\n\n"


def _answer(kind: str, choice: dict[str, object]) -> dict[str, object]:
    name = "chatcmpl-0123456789abcdef0123456789abcdef"
    return {"id": name, "object": kind, "created": _CREATED, "model": ENGINE_NAME, "choices": [choice]}


def _spelled(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def command(folder: Path, port: int) -> list[str]:
    """Writes what nginx reads into a folder, and returns the command that serves it.

    Raises:
        Missing: nginx or its Lua module is not installed.
    """
    (folder / "whole.json").write_bytes(whole_answer())
    (folder / "stream.txt").write_bytes(streamed_answer())
    card = {"id": ENGINE_NAME, "object": "model", "created": _CREATED, "owned_by": "vllm", "max_model_len": 2048}
    models = json.dumps({"object": "list", "data": [card]})
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port, models=models, modules=modules()))
    return [tool("nginx"), "-p", str(folder), "-c", str(config), "-e", str(folder / "nginx.log")]


def modules() -> Path:
    """Where nginx's modules are.

    Raises:
        Missing: The Lua module is not installed.
    """
    for folder in _MODULE_FOLDERS:
        if all((folder / name).is_file() for name in LUA_MODULES):
            return folder
    raise Missing("nginx's Lua module")
