# Every target makes what it needs: one environment, .venv, filled on demand from constraints.txt.
# A stamp in .venv/.stamps per group of extras says when it was last installed; a newer pyproject.toml or
# constraints.txt makes it stale. Another interpreter: make PYTHON=/path/to/python3.12 <target>.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
NEEDS_311 := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON := $(shell for p in python3.11 python3; do $$p -c '$(NEEDS_311)' 2>/dev/null && { echo $$p; break; }; done)
RESULTS := results/demo

# $(call install,extras): the package itself, editable, with these extras at the tested versions.
define install
@echo "Installing factorized-moe[$(1)] into $(VENV) (some minutes the first time) ..."
@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
@touch $@
endef

.PHONY: help demo bench models fairness neighbours test test-fast versions lint format types docs build clean recipes gpt

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMPS)/demo ## train on real digits, show the experts in results/demo (replaced at each run)
	@$(BIN)/factorized-moe demo --out $(RESULTS) --force

bench: $(STAMPS)/bench ## measure beside other layers, write docs/benchmarks.md (a quarter of an hour; OPTIONS=--quick)
	@$(BIN)/python -m benchmarks $(OPTIONS)

models: $(STAMPS)/models ## put experts into real models and distil them, write docs/studies/real-models.md (downloads 180 MB; resumes; hours)
	@$(BIN)/python -m studies real_models $(OPTIONS)

fairness: $(STAMPS)/fairness ## correct a classifier of people for the group it wrongs, write docs/studies/bias-correction*.md
	@$(BIN)/python -m studies bias_correction
	@$(BIN)/python -m studies bias_correction_celeba

recipes: $(STAMPS)/recipes ## train the three recipes at their smallest, in two processes, into results/recipes (some minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m recipes.smallest

gpt: $(STAMPS)/recipes ## train a GPT of experts on Python's own text, sample from it, show its experts in results/gpt
	@$(BIN)/python -m recipes.gpt $(OPTIONS)

neighbours: $(STAMPS)/neighbours ## run the tests with PEFT, TransformerLens, nnsight, captum and torchao (VENV=.venv-neighbours keeps them apart)
	@$(BIN)/python -m pytest -q -p no:cacheprovider tests/neighbours

test-fast: $(STAMPS)/dev ## run the tests that take less than a second each, under a minute in all
	@$(BIN)/python -m pytest -q -n 2 -m "not models and not slow and not thorough" tests

versions: $(STAMPS)/venv ## run the conformance suite on the lowest and the newest torch (downloads several GB)
	@$(BIN)/python scripts/versions.py $(OPTIONS)

test: $(STAMPS)/dev ## run the whole test suite, doctests and documentation included
	@$(BIN)/python -m pytest -q -n 2

lint: $(STAMPS)/dev ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMPS)/dev ## repair what `make lint` can repair
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(STAMPS)/dev ## check the types
	@$(BIN)/mypy

docs: $(STAMPS)/docs ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Documentation built: site/index.html"

build: $(STAMPS)/dev ## build the wheel and the source archive into dist/
	@$(BIN)/python -m build --no-isolation
	@$(BIN)/python -m twine check --strict dist/*

clean: ## remove the environment and everything built, but not results/
	@rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find factorized_moe benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that works is kept and filled; one that is missing, broken or too old is made anew.
$(STAMPS)/venv:
	@if ! { $(BIN)/python -c '$(NEEDS_311)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then \
	  if ! $(or $(PYTHON),false) -c '$(NEEDS_311)' 2>/dev/null; then \
	    echo "factorized-moe needs Python 3.11 or newer: neither python3.11 nor python3 (nor PYTHON=..., if given)" \
	      "is one. Install it, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; fi; \
	  echo "Creating $(VENV) with $$($(PYTHON) --version) ..."; $(PYTHON) -m venv --clear $(VENV); fi
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install,demo)

$(STAMPS)/bench: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install,bench)

$(STAMPS)/models: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install,models)

$(STAMPS)/fairness: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install,fairness)

$(STAMPS)/recipes: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install,recipes)

$(STAMPS)/neighbours: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install,neighbours)

$(STAMPS)/dev: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install,dev)

$(STAMPS)/docs: $(STAMPS)/venv pyproject.toml constraints.txt
	$(call install,docs)
