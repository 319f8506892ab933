# Each target is three lines or fewer and holds no logic: what needs an `if` is a script.
.DEFAULT_GOAL := help
PYTHON ?= python3
# Each process reads .env by itself, so that the environment wins; honcho would let .env win. Without exec a shell stands
# between make and honcho, and a SIGTERM to make would leave the stack running.
HONCHO := exec env PYTHONUNBUFFERED=1 ONCE=$(ONCE) .venv/bin/honcho --env /dev/null

.PHONY: help setup secrets demo serve backup restore test lint typecheck format bench-gateway bench-mcq bench-trainer bench-gain bench-compose docs lock clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: ## Make both environments, .env and the base model; quick when nothing changed
	@$(PYTHON) scripts/setup.py

secrets: ## Make .env, if it is not there, and fill in every secret that it lacks
	@$(PYTHON) scripts/setup.py --only-secrets

demo: setup ## Train a specialist, prove it better, serve it at http://localhost:7860; ONCE=1 ends after the story
	@GATEWAY_LOG_LEVEL=warning $(HONCHO) --procfile Procfile.demo start

serve: setup ## Start engine, gateway and UI until Ctrl-C
	@$(HONCHO) --procfile Procfile start

backup: ## Save the Compose stack's adapters, runs, aliases and keys under data/backups; FILE= names it, ENV=1 adds .env
	@$(PYTHON) -m scripts.backup backup --file "$(FILE)" --env "$(ENV)"

restore: ## Put a backup of the Compose stack back: FILE=...; FORCE=1 replaces what is there
	@$(PYTHON) -m scripts.backup restore --file "$(FILE)" --force "$(FORCE)"

test: setup ## Run every ring of tests, or one: make test RING=unit (house, contract, integration, docker, e2e)
	.venv/bin/pytest tests/$(RING)

bench-mcq: setup ## Measure multiple choice beside lm-evaluation-harness on real vLLM; writes bench/mcq/report.md
	@.venv/bin/python -m bench.mcq

bench-trainer: setup ## Measure training beside plain TRL and LLaMA-Factory; writes bench/trainer/report.md
	@.venv/bin/python -m bench.trainer

bench-gain: setup ## Train every domain with three seeds and examine them as served; hours; writes bench/gain/report.md
	@.venv/bin/python -m bench.gain

bench-compose: setup ## Measure the Compose stack on a real Docker engine; writes docs/reports/compose.md
	@PRECEPTOR_REPORT=1 .venv/bin/pytest tests/docker

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

docs: ## Write docs/api.md and docs/hardware.md from the code
	.venv/bin/python scripts/api_docs.py
	.venv/bin/python scripts/hardware_table.py

lock: ## Pin requirements/*.in into requirements/*.txt
	.venv/bin/python scripts/lock.py

clean: ## Remove the environments and caches; data/ and .env stay
	rm -rf .venv .venv-engine .venv-bench .venv-bench-mcq .venv-bench-trainer .venv-open-webui .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
