# Every target sets up what it needs on a bare machine: Python 3.11 or newer, make, and the package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help

.PHONY: help
help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

.PHONY: install
install: $(INSTALLED)  ## Make the virtual environment .venv and install the package with its test tools into it

$(INSTALLED): pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

.PHONY: demo
demo: install  ## Make music: a corpus, latents, fine-tuning of the small model that ships, report (2 cores, some minutes)
	rm -rf outputs/demo
	$(BIN)/musicgen-train demo

.PHONY: demo-model
demo-model: install  ## Make the encoders and the decoder that ship anew, from seeds (2 cores, some hours; killed, it resumes)
	$(BIN)/python scripts/demo_model/recipe.py

.PHONY: test
test: install  ## Run the tests (2 cores, no GPU, no network, some minutes)
	# Side by side, a core each; a file's tests in one process, since they share what its fixtures make.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

.PHONY: test-heavy
test-heavy: install  ## Run the tests that need full-size models (about 12 GB of memory, some minutes)
	$(BIN)/python -m pytest -m heavy

.PHONY: test-install
test-install: install  ## Install the package from the package index into a new environment, and use it (some minutes)
	$(BIN)/python -m pytest -m package_index

.PHONY: check
check: install  ## Format, lint and type check, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: format
format: install  ## Format the code and repair what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: benchmark
benchmark: install  ## Time forward, training step, generation and codec beside transformers, and print the table
	$(BIN)/python scripts/benchmarks/speed.py

.PHONY: clean
clean:  ## Remove caches and build products, not the virtual environment
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
