# Two commands matter: `make run` and `make test`. `make help` lists the rest.

VENV := .venv
BIN := $(VENV)/bin

# The first Python on the PATH that is new enough; another: make PYTHON=/path/to/python3.13
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v $$python; break; }; done)

# More options for pytest: make test ARGS="-k upload -x"
ARGS ?=
# The name of the image that `make image` builds.
TAG ?= openregistry
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.PHONY: help run setup test test-long lint types format check clients conformance bench load localstack cost package image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## set up what is needed and start the registry on 127.0.0.1:5000
	@exec $(BIN)/openregistry serve

setup: $(VENV)/.installed-tests $(VENV)/.installed-lint ## install everything into .venv (the others do it by themselves)

test: $(VENV)/.installed-tests ## run the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not long" $(ARGS)

test-long: $(VENV)/.installed-tests ## run the long tests, in two processes: large layers, stress, clients that are built first
	$(BIN)/python -m pytest -n 2 --dist loadfile -m long $(ARGS)

lint: $(VENV)/.installed-tests $(VENV)/.installed-lint ## check style, and the stack for AWS
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m infra.aws.package --template arm64 | $(BIN)/cfn-lint

types: $(VENV)/.installed-tests $(VENV)/.installed-lint ## check types
	$(BIN)/mypy

check: lint types test ## lint, types and tests: before every commit

clients: $(VENV)/.installed-tests ## build the Go clients of the long tests (needs Go; ARGS="--budget 600" stops in time)
	$(BIN)/python -m tests.clients.build $(ARGS)

conformance: $(VENV)/.installed-tests ## run the specification's conformance program (after `make clients`)
	$(BIN)/python -m pytest tests/conformance $(ARGS)

bench: $(VENV)/.installed-tests ## measure this registry and Debian's docker-registry on this machine
	$(BIN)/python -m tests.bench $(ARGS)

load: $(VENV)/.installed-tests ## put a registry of its own under steady load and watch its memory (an hour: ARGS="--minutes 60")
	$(BIN)/python -m tests.load $(ARGS)

package: $(VENV)/.installed-tests ## make what goes to AWS: dist/lambda-*.zip, and a stack's template for each
	$(BIN)/python -m infra.aws.package $(ARGS)

image: ## build the container image (another base: BASE=IMAGE; more for docker build: ARGS="--pull")
	docker build --file infra/Dockerfile --tag $(TAG) $(if $(BASE),--build-arg BASE=$(BASE)) \
		--build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' chalicelib/__init__.py) \
		--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null) $(ARGS) .

localstack: $(VENV)/.installed-tests ## deploy the stack into an AWS on this machine and serve it on 127.0.0.1:5000 (ARGS="--port 5001")
	$(BIN)/python -m infra.localstack $(ARGS)

cost: $(VENV)/.installed-tests ## reckon what a registry costs a month (measure anew before: ARGS=--measure)
	$(BIN)/python -m infra.cost $(ARGS)

format: $(VENV)/.installed-lint ## put the code into the house's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove .venv and caches; the registry's data (.data) stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. Each stamp stands for a set of installed packages and is made again when its lists change.

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "OpenRegistry needs Python 3.11 or newer on the PATH (or: make PYTHON=/path/to/python)."; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is too old: OpenRegistry needs Python 3.11 or newer."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: on Debian or Ubuntu, apt install python3-venv."; \
		exit 1; }
	@rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt requirements-harness.txt requirements-embedded.txt | $(BIN)/python
	$(PIP) $(foreach list,$(filter requirements%,$^),-r $(list))
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' | { \
		read -r packages && echo "$(CURDIR)" > "$$packages/openregistry.pth"; }
	@printf '#!/bin/sh\nexec "%s" -m chalicelib "$$@"\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/openregistry
	@chmod +x $(BIN)/openregistry
	@touch $@

$(VENV)/.installed-tests: requirements-test.txt $(VENV)/.installed
	$(PIP) -r requirements-test.txt
	@touch $@

$(VENV)/.installed-lint: requirements-lint.txt $(VENV)/.installed
	$(PIP) -r requirements-lint.txt
	@touch $@
