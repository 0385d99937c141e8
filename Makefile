# make demo [FAULT=hang]   three real agents, watched        make test    the tests
# make bench               what it costs, as ratios          make lint    formatting, lint, strict types, docstrings
# make stack               hopwatch with Prometheus, Alertmanager and an OpenTelemetry Collector around it, without containers
# make matrix              the stories of tests/sdk with each release of a2a-sdk, of tests/acp with agent-client-protocol, and those of what else
#                          hopwatch was run with, by nox; writes docs/compatibility.md. MATRIX="-t thin", or what else nox takes
# make neighbours          the tests beside others who watch, in an environment that has them
# make pythons             the tests on every Python that is installed here
# make storm               200 runs of programs that end in any way at any moment; STORM="--runs 500 --seed 7"

PYTHON ?= python3
VENV ?= .venv
FAULT ?= none
# Real processes wait for each other for most of a test: two at once take half the time.
PYTEST ?= -n auto --maxprocesses 4 --dist worksteal
# What else pip is told, for a Python whose wheels are not all there yet: PIP="--only-binary :all: --no-binary pyyaml"
PIP ?=
STORM ?=
STACK ?=
MATRIX ?= -t matrix
BIN = $(VENV)/bin

.PHONY: demo stack test storm bench lint format matrix neighbours pythons dashboards typecheck clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "hopwatch needs Python 3.10 or later; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo "not there"). Name another one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP) -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP) -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.neighbours: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[neighbours]'
	@touch $@ $(VENV)/.test $(VENV)/.demo

$(VENV)/.matrix: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP) -c constraints.txt -e '.[matrix]'
	@touch $@ $(VENV)/.test $(VENV)/.demo

$(VENV)/.lint: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP) -c constraints.txt -e '.[lint]'
	@touch $@ $(VENV)/.test $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/hopwatch demo --fault $(FAULT)

stack: $(VENV)/.demo
	@exec $(BIN)/python stack/run.py $(STACK)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST)

storm: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m storm $(STORM)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/asyncio_hooks.py
	$(if $(shell command -v valgrind),$(BIN)/python benchmarks/instructions.py,@echo "valgrind is not installed: instructions are not counted")
	$(BIN)/python benchmarks/blackbox.py
	$(BIN)/python benchmarks/a2a_messages.py
	$(BIN)/python benchmarks/cascades.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/collector.py
	$(BIN)/python benchmarks/exits.py
	$(BIN)/python benchmarks/metrics.py

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/interrogate src
	$(BIN)/hadolint Dockerfile stack/probe.Dockerfile

format: $(VENV)/.lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

matrix: $(VENV)/.matrix
	$(BIN)/nox $(MATRIX)

neighbours:
	@$(MAKE) --no-print-directory VENV=.venv-neighbours .venv-neighbours/.neighbours
	.venv-neighbours/bin/python -m pytest $(PYTEST) tests/neighbours

# Those that pyenv keeps are found too. `.ci/in-root make pythons` has 3.14 and 3.15 where the system has none.
pythons:
	@for version in 3.10 3.11 3.12 3.13 3.14 3.15; do \
	  python=$$($(PYTHON) tests/pythons.py $$version) || { echo "Python $$version is not installed here: not tested"; continue; }; \
	  $(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$version || exit 1; \
	done

dashboards: $(VENV)/.test
	$(BIN)/python dashboards/generate.py

# Grafana's own types; needs node and npm.
typecheck:
	cd dashboards/typecheck && npm install --no-package-lock --ignore-scripts --no-audit --no-fund --silent && npm run --silent check

clean:
	rm -rf .venv .venv-* .nox .reports
