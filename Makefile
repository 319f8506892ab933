# Each target is three lines or fewer and holds no logic: what needs an `if` is a script.
.DEFAULT_GOAL := help
PYTHON ?= python3
# Each process reads .env by itself, so that the environment wins; honcho would let .env win. Without exec a shell stands
# between make and honcho, and a SIGTERM to make would leave the stack running.
HONCHO := exec env PYTHONUNBUFFERED=1 ONCE=$(ONCE) .venv/bin/honcho --env /dev/null

.PHONY: help setup demo serve test test-unit test-house test-contract test-integration test-e2e lint typecheck format bench-gateway bench-mcq bench-trainer bench-gain docs lock clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: ## Make both environments, .env and the base model; quick when nothing changed
	@$(PYTHON) scripts/setup.py

demo: setup ## Train a specialist, prove it better, serve it at http://localhost:7860; ONCE=1 ends after the story
	@GATEWAY_LOG_LEVEL=warning $(HONCHO) --procfile Procfile.demo start

serve: setup ## Start engine, gateway and UI until Ctrl-C
	@$(HONCHO) --procfile Procfile start

test: setup ## Run every ring of tests
	.venv/bin/pytest

test-unit: ## Run the unit ring (seconds)
	.venv/bin/pytest tests/unit

test-house: ## Run the house rules
	.venv/bin/pytest tests/house

test-contract: ## Run one suite against the fake engine and real vLLM
	.venv/bin/pytest tests/contract

test-integration: ## Run real processes together
	.venv/bin/pytest tests/integration

test-e2e: ## Run what the README promises, as written
	.venv/bin/pytest tests/e2e

bench-mcq: setup ## Measure multiple choice beside lm-evaluation-harness on real vLLM; writes bench/mcq/report.md
	@.venv/bin/python -m bench.mcq

bench-trainer: setup ## Measure training beside plain TRL and LLaMA-Factory; writes bench/trainer/report.md
	@.venv/bin/python -m bench.trainer

bench-gain: setup ## Train every domain with three seeds and examine them as served; hours; writes bench/gain/report.md
	@.venv/bin/python -m bench.gain

lint: ## Check style and import directions
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

typecheck: ## Check types
	.venv/bin/mypy

format: ## Mend style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench-gateway: setup ## Measure the gateway beside LiteLLM and vllm-router; BENCH=--quick is a smoke of a minute
	@exec .venv/bin/python -m bench.gateway $(BENCH)

docs: ## Write docs/api.md from the gateway's OpenAPI document
	.venv/bin/python scripts/api_docs.py

lock: ## Pin requirements/*.in into requirements/*.txt
	.venv/bin/python scripts/lock.py

clean: ## Remove the environments and caches; data/ and .env stay
	rm -rf .venv .venv-engine .venv-bench .venv-bench-mcq .venv-bench-trainer .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
