PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 4
GROUPS := dev bench celery docs fuzz release stores

.DEFAULT_GOAL := help
.PHONY: help demo test test-stack test-memory bench-wait bench-transfer check fix constraints clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/ready ## run the archive DAG on the embedded sandbox, with all the set-up
	@$(BIN)/python scripts/demo.py

test: $(VENV)/stores ## run the tests, with all the set-up
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-stack: $(VENV)/stores ## test a real api-server, scheduler and triggerer on PostgreSQL (some minutes)
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq postgresql; }
	$(BIN)/python -m pytest -m stack tests/stack -v -s $(ARGS)

test-matrix: $(VENV)/stores ## test the wheel on each Airflow and Python that we claim (an hour); CELLS="oldest newest" for some
	$(BIN)/python scripts/matrix.py $(CELLS)

bench-wait: $(VENV)/ready ## measure what waiting costs a triggerer, beside the peers (ten minutes)
	$(BIN)/python benchmarks/wait.py

bench-transfer: $(VENV)/stores ## measure the archiver beside curl, rclone and HttpToS3Operator (ten minutes)
	@command -v nginx >/dev/null || { apt-get update -qq && apt-get install -y -qq nginx-light; }
	@command -v curl >/dev/null || { apt-get update -qq && apt-get install -y -qq curl; }
	@$(BIN)/uv pip install --quiet --python $(VENV) --constraints constraints-dev.txt --group bench
	$(BIN)/python benchmarks/transfer.py $(ARGS)

test-memory: $(VENV)/stores ## test that gigabytes add little memory, on every store (six minutes)
	$(BIN)/python -m pytest -m slow tests/transfer -rP $(ARGS)

check: $(VENV)/ready ## lint, check formatting and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/ready ## mend what ruff can mend, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(VENV)/ready ## renew the versions that development and CI install
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --no-header \
		--all-extras $(addprefix --group ,$(GROUPS)) pyproject.toml -o constraints-dev.txt

clean: ## remove what the other targets made
	rm -rf $(VENV) .demo build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/ready: pyproject.toml constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV) (a minute or two, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(VENV) --constraints constraints-dev.txt --editable '.[s3]' --group dev
	@touch $@

# What only tests need, and takes as long again: the providers of the other stores, and emulators of them.
$(VENV)/stores: $(VENV)/ready tests/azurite/package-lock.json
	@echo "Setting up the object stores for the tests (half a minute, once) ..."
	@$(BIN)/uv pip install --quiet --python $(VENV) --constraints constraints-dev.txt --editable '.[s3,gcs,azure]' --group stores
	@mkdir -p $(VENV)/azurite && cp tests/azurite/*.json $(VENV)/azurite/
	@cd $(VENV)/azurite && PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --silent --no-audit --no-fund
	@touch $@
