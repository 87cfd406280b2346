PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 4
GROUPS := dev bench celery docs fuzz release samples screenshots stores

INSTALL := $(BIN)/uv pip install --quiet --python $(VENV) --constraints constraints-dev.txt

.DEFAULT_GOAL := help
.PHONY: help demo ui test test-ui fuzz test-stack test-celery test-kills soak test-memory test-matrix bench-wait bench-submit bench-transfer screenshots check docs dist audit fix constraints clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/ready ## run example_luma_generate on the embedded sandbox, with all the set-up
	@$(BIN)/python scripts/demo.py

ui: $(VENV)/ready ## start a real Airflow on the sandbox, run the example once, and look at its clips
	@$(BIN)/python scripts/ui.py $(ARGS)

test: $(VENV)/stores ## run the tests, with all the set-up
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

fuzz: $(VENV)/stores ## try far more bad input than `make test` does (five minutes)
	$(BIN)/python -m pytest --hypothesis-profile=fuzz -n $(WORKERS) -k fuzz $(ARGS)

test-ui: $(VENV)/stores chromium ## click through the gallery in a real browser; writes docs/images/gallery-*.png (five minutes)
	$(BIN)/python -m pytest -m ui tests/ui -v -s $(ARGS)

test-stack: $(VENV)/stores postgresql ## test a real api-server, scheduler and triggerer on PostgreSQL (some minutes)
	$(BIN)/python -m pytest -m stack tests/stack -v -s $(ARGS)

test-celery: $(VENV)/stores postgresql redis ## test 1,000 prompts on Celery while parts of it are killed (half an hour)
	$(BIN)/python -m pytest -m celery tests/stack -v -s $(ARGS)

test-kills: $(VENV)/stores ## kill generate tasks before each of their lines, on a real Airflow too (hours; LUMA_KILLS_STEP=5 for some)
	LUMA_KILLS_STEP=$${LUMA_KILLS_STEP:-1} $(BIN)/python -m pytest -m "kills or not kills" -k kill tests/kills tests/airflow/test_paid_once.py tests/airflow/test_batch_paid_once.py -v -s $(ARGS)

MINUTES ?= 20
soak: $(VENV)/stores postgresql redis ## wait and download in a loop for MINUTES=20; growth of memory, threads, sockets and files is bounded
	LUMA_SOAK_MINUTES=$(MINUTES) $(BIN)/python -m pytest -m soak tests/stack -v -s $(ARGS)

.PHONY: chromium postgresql redis
chromium: $(VENV)/ready
	@$(INSTALL) --group screenshots
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }

redis: $(VENV)/ready
	@$(INSTALL) --group celery
	@command -v redis-server >/dev/null || { apt-get update -qq && apt-get install -y -qq redis-server; }

postgresql:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq postgresql; }

test-matrix: $(VENV)/stores ## test the wheel on each Airflow and Python that we claim (an hour and more); CELLS="oldest newest newest-deps" for some
	$(BIN)/python scripts/matrix.py $(CELLS) --pytest "$(ARGS)"

bench-wait: $(VENV)/ready ## measure what waiting costs a triggerer, beside the peers (ten minutes)
	$(BIN)/python benchmarks/wait.py
	$(BIN)/python scripts/charts.py

bench-submit: $(VENV)/stores postgresql redis ## measure a batch of prompts beside a mapped task for each, and its journal (half an hour)
	$(BIN)/python benchmarks/submit.py $(ARGS)

bench-transfer: $(VENV)/stores ## measure downloads beside curl, rclone and HttpToS3Operator (ten minutes)
	@command -v nginx >/dev/null || { apt-get update -qq && apt-get install -y -qq nginx-light; }
	@command -v curl >/dev/null || { apt-get update -qq && apt-get install -y -qq curl; }
	@$(INSTALL) --group bench
	$(BIN)/python benchmarks/transfer.py $(ARGS)
	$(BIN)/python scripts/charts.py

test-memory: $(VENV)/stores ## test that gigabytes add little memory, on every store (six minutes)
	$(BIN)/python -m pytest -m slow tests/download -rP $(ARGS)
	$(BIN)/python scripts/charts.py

screenshots: $(VENV)/stores postgresql chromium ## click through the approval example in a real browser; writes docs/images (four minutes)
	$(BIN)/python scripts/screenshots.py

check: $(VENV)/ready ## lint, check formatting, types and spelling; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(BIN)/zizmor --offline --no-progress --quiet .github

docs: $(VENV)/ready ## build the documentation site in build/docs; warnings are errors
	@$(INSTALL) --group docs
	$(BIN)/python scripts/charts.py --check
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs build/docs

dist: $(VENV)/ready ## build sdist and wheel, twice, and check what they hold
	@$(INSTALL) --group release
	$(BIN)/python scripts/dist.py

audit: $(VENV)/ready ## check development's packages for known vulnerabilities; needs a package index that reports them
	@$(INSTALL) --group release
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements constraints-dev.txt -o build/constraints-dev.cdx.json
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints-dev.txt

fix: $(VENV)/ready ## apply ruff's fixes, and format
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
	@$(INSTALL) --editable '.[s3]' --group dev
	@touch $@

# Only tests need these, and they take as long again: the providers of the other stores, and emulators of them.
$(VENV)/stores: $(VENV)/ready tests/azurite/package-lock.json
	@echo "Setting up the object stores for the tests (half a minute, once) ..."
	@$(INSTALL) --editable '.[s3,gcs,azure]' --group stores --group fuzz --group samples
	@mkdir -p $(VENV)/azurite && cp tests/azurite/*.json $(VENV)/azurite/
	@cd $(VENV)/azurite && PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --silent --no-audit --no-fund
	@touch $@
