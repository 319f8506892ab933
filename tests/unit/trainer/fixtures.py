"""A base model, a domain and a gateway small enough to go through the whole trainer in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from preceptor_contracts.domains import Domain, find_domain
from preceptor_contracts.manifest import Canary, read_adapter, verify_files
from preceptor_contracts.mcq import McqItem
from preceptor_contracts.messages import Message
from preceptor_contracts.prompts import render_chat, render_mcq
from preceptor_contracts.wire import RenderRequest
from preceptor_trainer import pipeline
from preceptor_trainer.gateway import Gateway
from preceptor_trainer.recipes import Overrides
from preceptor_trainer.runs import RunDir, Stage
from preceptor_trainer.settings import TrainerSettings
from preceptor_trainer.stages import Promoted, Workshop
from preceptor_trainer.tokens import load_tokenizer, prompt_ids

from tests.fakes.adapters import write_adapter

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOPICS = ["moss", "fern", "reed", "clover", "heather", "willow", "hazel", "sorrel", "nettle", "thistle"]
COLOURS = ["red", "blue", "green", "white", "brown", "grey", "pink", "black", "gold", "silver"]


def write_base_model(folder: Path) -> None:
    """Saves a random Llama of a few thousand parameters with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    plain.train_from_iterator(["which colour has the plant", *TOPICS, *COLOURS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_domain(root: Path, *, name: str = "plants", records: int = 10, questions: int = 24) -> Path:
    """Writes a multiple-choice domain about the colours of plants."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "domain.yaml").write_text(
        f"name: {name}\ntitle: Plants\ndescription: Colours of plants.\nsystem: Name the colour.\n"
        "mcq: {scoring: options}\nrecipe: smollm2-135m-cpu\ngrader: mcq\nmax_answer_tokens: 8\n",
        encoding="utf-8",
    )
    rows = [
        {
            "id": f"t{at}",
            "kind": "prompt_completion",
            "topic": "colours",
            "prompt": f"Say the tint of plant number {at} called {TOPICS[at % 10]}",
            "completion": COLOURS[at % 10],
        }
        for at in range(records)
    ]
    exam = [
        {
            "id": f"e{at}",
            "kind": "mcq",
            "topic": TOPICS[at % 3],
            "group": "trained" if at % 2 else "near",
            "question": f"Which colour would {TOPICS[at % 10]} show in picture {at}?",
            "options": [COLOURS[at % 10], COLOURS[(at + 1) % 10]],
            "answer": 0,
        }
        for at in range(questions)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "exam.jsonl", exam)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_recipe(path: Path, **changes: object) -> Path:
    """Writes a recipe that trains a few steps."""
    values = {
        "name": "tiny",
        "description": "For tests.",
        "method": "lora",
        "dtype": "float32",
        "rank": 8,
        "learning_rate": 0.05,
        "epochs": 3,
        "batch_size": 2,
        "max_length": 256,
        "checkpoint_every": 4,
        "logging_steps": 2,
        **changes,
    }
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


class FakeGateway:
    """Answers what the trainer asks of a gateway, from the same contracts; the adapter is right, the base is not."""

    def __init__(self, settings: TrainerSettings) -> None:
        self.settings = settings
        self.promoted: list[dict[str, str]] = []
        self.registered: list[str] = []
        self.pinned: set[str] = set()
        self.unpin_fails = False
        self.extra_token = False
        self._tokenizer = load_tokenizer(settings.base_model)
        self.canary_fails = False
        self.adapter_is_right: Callable[[str], bool] = lambda question: True
        self.asked: list[tuple[str, str]] = []
        """Served name and path of everything that was asked of a served name."""
        self.says: Callable[[str, str], str] = lambda served, question: ""
        """Answer of a served name to a chat."""
        self.likes: Callable[[str, str], float] = lambda served, text: -1.0
        """Log-probability that a served name gives each token of a text."""
        self.served = ["plants:base", "base"]
        self.engine = "fake 1"
        self.status = ""
        """What /health says; empty: `ok` where every engine is up."""
        self.engines_up: Callable[[], dict[str, bool]] = lambda: {"fake:1": True}
        self.refuse: Callable[[int], httpx.Response | None] = lambda count: None
        """What the so-manieth question to a served name gets in place of an answer."""

    def connect(self, settings: TrainerSettings) -> Gateway:
        """Opens a client on this gateway in place of one on the network."""
        return Gateway(str(settings.gateway_url), settings.admin_key(), transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or "{}")
        if path == "/health":
            up = self.engines_up()
            engines = [{"engine": name, "up": up[name], "in_flight": 0, "adapters_ready": 0} for name in up]
            status = self.status or ("ok" if all(up.values()) else "degraded")
            found = {"status": status, "engine": self.engine, "engines": engines}
            return httpx.Response(200 if any(up.values()) else 503, json={**found, "domains": 1, "adapters_ready": 0})
        if path.endswith("/render"):
            return self._render(path.split("/")[3], body)
        if path == "/v1/adapters":
            return self._register(body["adapter"]) if request.method == "POST" else self._list()
        if path.endswith("/pin"):
            return self._unpin(path.split("/")[3])
        if path.startswith("/v1/adapters/"):
            return self._view(path.split("/")[3]) if request.method == "GET" else self._unload(path.split("/")[3])
        if path.endswith("/promote"):
            self.promoted.append(body)
            answer = {"domain": path.split("/")[3], "promoted": body["adapter"], "previous": None}
            return httpx.Response(200, json=answer)
        if path == "/v1/models":
            return self._models()
        if path in {"/submit_mcq", "/v1/chat/completions", "/v1/completions"}:
            return self._ask(path, body)
        raise AssertionError(f"the trainer asked for {path}")

    def _domain(self, name: str) -> Domain:
        return find_domain(self.settings.domains_dir, name).domain

    def _render(self, name: str, body: dict[str, Any]) -> httpx.Response:
        asked = RenderRequest.model_validate(body)
        domain = self._domain(name)
        messages: tuple[Message, ...] = (
            render_mcq(domain, asked.mcq) if asked.mcq else render_chat(domain, asked.messages)
        )
        ids = prompt_ids(self._tokenizer, messages)
        ids = [*ids, 5] if self.extra_token else ids
        return httpx.Response(200, json={"messages": [message.model_dump() for message in messages], "token_ids": ids})

    def _register(self, name: str) -> httpx.Response:
        verify_files(read_adapter(self.settings.adapters_dir / name))
        self.registered.append(name)
        self.served.append(f"{name.rpartition('-v')[0]}:{name}")
        self.pinned.add(name)
        state = "failed" if self.canary_fails else "ready"
        view = {"adapter": name, "domain": "plants", "served": f"plants:{name}", "state": state, "reason": "canary"}
        return httpx.Response(200, json=view)

    def _list(self) -> httpx.Response:
        names = sorted(path.name for path in self.settings.adapters_dir.glob("[!.]*") if path.is_dir())
        return httpx.Response(200, json={"data": [self._view(name).json() for name in names]})

    def _view(self, name: str) -> httpx.Response:
        view = {"adapter": name, "domain": "plants", "served": f"plants:{name}", "pinned": name in self.pinned}
        view["state"] = "ready" if name in self.registered else "registered"
        view["promoted"] = bool(self.promoted) and self.promoted[-1]["adapter"] == name
        return httpx.Response(200, json=view)

    def _unload(self, name: str) -> httpx.Response:
        if name in [move["adapter"] for move in self.promoted[-2:]]:
            problem = {"message": f"{name!r} is needed.", "type": "conflict_error", "code": "adapter_promoted"}
            return httpx.Response(409, json={"error": problem, "request_id": "1"})
        self.pinned.discard(name)
        self.registered = [each for each in self.registered if each != name]
        return self._view(name)

    def _unpin(self, name: str) -> httpx.Response:
        if self.unpin_fails:
            problem = {"message": "Gone.", "type": "not_found_error", "code": "unknown_adapter"}
            return httpx.Response(404, json={"error": problem, "request_id": "1"})
        self.pinned.discard(name)
        view = {"adapter": name, "domain": "plants", "served": f"plants:{name}", "state": "ready"}
        return httpx.Response(200, json=view)

    def _mcq(self, body: dict[str, Any]) -> httpx.Response:
        is_adapter = not body["model"].endswith(":base")
        right = is_adapter and self.adapter_is_right(body["question"])
        item = McqItem(question=body["question"], options=tuple(body["choices"]))
        answer = "A" if right else "B"
        answered = {
            "answer": answer,
            "choice": item.options[item.labels.index(answer)],
            "probabilities": {"A": 0.8 if right else 0.2, "B": 0.2 if right else 0.8},
            "off_option_mass": 0.1,
            "margin": 0.6,
            "scoring": "options",
            "served": body["model"],
            "adapter": None,
            "domain": body["model"].split(":")[0],
            "prompt_tokens": 9,
            "request_id": "r",
        }
        return httpx.Response(200, json=answered)

    def _models(self) -> httpx.Response:
        return httpx.Response(200, json={"object": "list", "data": [{"id": name} for name in self.served]})

    def _ask(self, path: str, body: dict[str, Any]) -> httpx.Response:
        if (refusal := self.refuse(len(self.asked) + 1)) is not None:
            return refusal
        served = body["model"]
        if served not in self.served:
            problem = {"message": f"{served!r} is not loaded.", "type": "x", "code": "adapter_not_loaded"}
            return httpx.Response(503, json={"error": problem, "request_id": "1"}, headers={"retry-after": "0"})
        self.asked.append((served, path))
        if path == "/submit_mcq":
            return self._mcq(body)
        if path == "/v1/completions":
            return self._score(served, body["prompt"])
        answer = self.says(served, body["messages"][-1]["content"])
        return httpx.Response(200, json={"choices": [{"message": {"role": "assistant", "content": answer}}]})

    def _score(self, served: str, prompts: list[list[int]]) -> httpx.Response:
        choices = []
        for index, ids in enumerate(prompts):
            logprob = self.likes(served, str(self._tokenizer.decode(ids)))
            entries = [None, *({str(token): {"logprob": logprob, "rank": 1}} for token in ids[1:])]
            choices.append({"index": index, "text": "", "prompt_logprobs": entries})
        return httpx.Response(200, json={"choices": choices})


def pretend_adapter(settings: TrainerSettings, name: str) -> None:
    """Writes an adapter of domain `plants` that no training made."""
    domain = find_domain(settings.domains_dir, "plants").domain
    canary = Canary(
        messages=render_chat(domain, [Message(role="user", content="Canary?")]),
        prompt_ids=(5,),
        token_ids=(5,),
        adapter_logprobs=(-1.0,),
        base_logprobs=(-2.0,),
    )
    write_adapter(settings.adapters_dir, name, domain, canary)


def published_run(shop: Workshop, gateway: FakeGateway, recipe: str) -> RunDir:
    """Makes a run whose adapter was published without any training, for what comes after."""
    from preceptor_trainer.publish import Published  # imports TRL

    run = pipeline.start_run(shop, "plants", Overrides(recipe=recipe))
    name = f"plants-v1-{run.id[-4:]}0000"
    pretend_adapter(shop.settings, name)
    gateway._register(name)
    nothing = Promoted(promoted=False, reason="pretended")
    run.finish(Stage.PLAN, nothing)
    run.finish(Stage.TRAIN, nothing)
    run.finish(Stage.PUBLISH, Published(adapter=name, parity_samples=1, canary_separation=1, load_seconds=0))
    return run
