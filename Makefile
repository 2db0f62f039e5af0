# Every command of the project. `make help` lists them; each installs what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed
# Importing writes bytecode for just what workers import: half of a cold start is compiling it.
BYTECODE := import steadfast_agent.__main__, steadfast_agent.zygote, steadfast_cli.run, steadfast_trainer.__main__, streaming

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-19s %s\n", $$1, $$2}'

install: $(INSTALLED) ## Make .venv with everything from the lock file

$(INSTALLED): requirements/dev.lock requirements/uv.lock pyproject.toml
	@started=$$SECONDS; echo "Installing into .venv"; \
	$(PYTHON) -m venv .venv; \
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock; \
	$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python requirements/dev.lock; \
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --editable .; \
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -c "$(BYTECODE)"; \
	touch $@; echo "Installed, downloads included, in $$((SECONDS - started)) s"

demo: install ## Train moe-tiny on 2 workers, kill one, recover; ends with a table
	@$(BIN)/python examples/demo.py

demo-cluster: cluster-up ## The same on the test bed: helm install, kubectl apply, a pod killed, Prometheus asked
	@PYTHONPATH=tests $(BIN)/python examples/demo_cluster.py

check: install ## Lint, types, import contracts, unit tests: about a minute
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/unit tests/simulation tests/architecture

test: check ## Everything that must pass on every change
	$(BIN)/pytest -q tests/contract tests/local
	@$(MAKE) --no-print-directory test-cluster

test-cluster: install ## The cluster suite, on the test bed or on the cluster that STEADFAST_KUBECONFIG names
	@if [ -n "$${STEADFAST_KUBECONFIG:-}" ] || [ "$$(id -u)" = 0 ]; then \
	  [ -n "$${STEADFAST_KUBECONFIG:-}" ] || $(MAKE) --no-print-directory cluster-up; \
	  $(BIN)/pytest -q -m "not full" tests/chart tests/cluster; \
	else \
	  echo "The cluster suite did not run: the test bed needs root; or set STEADFAST_KUBECONFIG"; \
	  [ -z "$${STEADFAST_CLUSTER_REQUIRED:-}" ]; \
	fi

test-full: test ## Also what takes long: nodes that come and go
	$(BIN)/pytest -q -m full tests/cluster

format: install ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generate: install ## Write generated files: crds/, the chart's copies and README
	for plural in trainingjobs clustertrainingprofiles; do \
	  $(BIN)/python -m steadfast_operator.api.crd $$plural > crds/$$plural.yaml; \
	done
	$(BIN)/python charts/generate.py

golden: install ## Accept the frozen surfaces as they are now; the diff is for review
	$(BIN)/pytest -q tests/architecture --update-golden

lock: install ## Resolve dependencies anew into requirements/*.lock
	$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	  pyproject.toml --extra dev -o requirements/dev.lock
	for extra in operator trainer cli; do \
	  $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	    --constraint requirements/dev.lock pyproject.toml --extra $$extra -o requirements/$$extra.lock; \
	done

bench-startup: cluster-up ## `kubectl apply` to the first step, beside JobSet, PyTorchJob, torchrun in a Job; 5 minutes
	PYTHONPATH=tests $(BIN)/python -m bench.startup

bench-restart: cluster-up ## Failure to the next step, beside the same; 20 minutes, REPEATS=1 for a glance
	PYTHONPATH=tests $(BIN)/python -m bench.restart

bench-startup-local: install ## `steadfast run` to the first step, beside torchrun
	$(BIN)/python -m bench.startup_local

bench-restart-local: install ## A rank of `steadfast run` killed to the next step, beside torchrun
	$(BIN)/python -m bench.restart_local

cluster-up: install ## A real Kubernetes of three nodes on this machine (root; 15 minutes the first time)
	@PYTHONPATH=tests $(BIN)/python -m testbed up

cluster-down: install ## End and delete it; what was built stays cached
	@PYTHONPATH=tests $(BIN)/python -m testbed down

cluster-status: install ## What of it runs, what it takes, where it is
	@PYTHONPATH=tests $(BIN)/python -m testbed status

kind-up: install ## The same on kind, where Docker is; prints what the suite needs to be told
	@PYTHONPATH=tests $(BIN)/python -m testbed.kind up

kind-down: install ## End and delete it
	@PYTHONPATH=tests $(BIN)/python -m testbed.kind down

clean: ## Delete .venv, the demo's data and caches
	rm -rf .venv .demo .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: help install demo demo-cluster check test test-cluster test-full format generate golden lock bench-startup bench-restart bench-startup-local bench-restart-local cluster-up cluster-down cluster-status kind-up kind-down clean
