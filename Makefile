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

DEMO_MODEL := outputs/demo-model
# Three corpora of ten seconds a track; of the second every caption names tempo and key.
demo_mix = data=mix 'data.mix=[{path: $(DEMO_MODEL)/latents-more, weight: $(1)}, {path: $(DEMO_MODEL)/latents-named, \
	weight: $(2)}$(if $(3),$(comma) {path: $(DEMO_MODEL)/latents-third$(comma) weight: $(3)})]'
comma := ,

.PHONY: demo-model
demo-model: install  ## Make the encoders and the decoder that ship anew, from seeds (2 cores, some hours; killed, it goes on)
	$(BIN)/python -m musicgen_train.demo train-encoders $(DEMO_MODEL)/encoders
	$(BIN)/python -m musicgen_train.demo corpus $(DEMO_MODEL)/music --tracks 2000 --seconds 15.36 --seed 11
	test -d $(DEMO_MODEL)/latents || $(BIN)/python scripts/preprocess.py input=$(DEMO_MODEL)/music \
		output=$(DEMO_MODEL)/latents encoders=$(DEMO_MODEL)/encoders/composite clip_seconds=15.36 split.validation=0.04
	$(BIN)/python scripts/train.py experiment=demo_model data.path=$(DEMO_MODEL)/latents \
		init_from=$(DEMO_MODEL)/encoders/composite output=$(DEMO_MODEL)/run resume=auto
	$(BIN)/python scripts/train.py experiment=demo_model_long data.path=$(DEMO_MODEL)/latents \
		init_from=$(DEMO_MODEL)/run/composite output=$(DEMO_MODEL)/run-long resume=auto
	$(BIN)/python -m musicgen_train.demo corpus $(DEMO_MODEL)/music-more --tracks 2400 --seconds 10.24 --seed 12
	test -d $(DEMO_MODEL)/latents-more || $(BIN)/python scripts/preprocess.py input=$(DEMO_MODEL)/music-more \
		output=$(DEMO_MODEL)/latents-more encoders=$(DEMO_MODEL)/encoders/composite clip_seconds=10.24 \
		split.validation=0.03
	$(BIN)/python -m musicgen_train.demo corpus $(DEMO_MODEL)/music-named --tracks 1079 --seconds 10.24 --seed 13
	test -d $(DEMO_MODEL)/latents-named || $(BIN)/python scripts/preprocess.py input=$(DEMO_MODEL)/music-named \
		output=$(DEMO_MODEL)/latents-named encoders=$(DEMO_MODEL)/encoders/composite clip_seconds=10.24 \
		split.validation=0.02 captions.fields=[description] captions.tags=false captions.variants=1
	$(BIN)/python scripts/train.py experiment=demo_model_more $(call demo_mix,0.7,0.3) schedule=constant schedule.warmup_steps=60 \
		trainer.max_steps=1547 init_from=$(DEMO_MODEL)/run-long/composite output=$(DEMO_MODEL)/run-more resume=auto
	$(BIN)/python scripts/train.py experiment=demo_model_more $(call demo_mix,0.7,0.3) schedule.warmup_steps=10 seed=1 \
		init_from=$(DEMO_MODEL)/run-more/composite output=$(DEMO_MODEL)/run-last resume=auto
	$(BIN)/python -m musicgen_train.demo corpus $(DEMO_MODEL)/music-third --tracks 3000 --seconds 10.24 --seed 14
	test -d $(DEMO_MODEL)/latents-third || $(BIN)/python scripts/preprocess.py input=$(DEMO_MODEL)/music-third \
		output=$(DEMO_MODEL)/latents-third encoders=$(DEMO_MODEL)/encoders/composite clip_seconds=10.24 \
		split.validation=0.02
	$(BIN)/python scripts/train.py experiment=demo_model_more $(call demo_mix,0.18,0.12,0.7) schedule=constant schedule.warmup_steps=40 \
		trainer.max_steps=2152 seed=2 validate_every=250 init_from=$(DEMO_MODEL)/run-last/composite \
		output=$(DEMO_MODEL)/run-third resume=auto
	$(BIN)/python scripts/train.py experiment=demo_model_short $(call demo_mix,0.2,0.3,0.5) schedule=constant schedule.warmup_steps=20 \
		seed=4 init_from=$(DEMO_MODEL)/run-third/composite output=$(DEMO_MODEL)/run-short resume=auto
	$(BIN)/python scripts/train.py experiment=demo_model_more $(call demo_mix,0.2,0.3,0.5) schedule.warmup_steps=10 \
		trainer.max_steps=240 seed=5 init_from=$(DEMO_MODEL)/run-short/composite output=$(DEMO_MODEL)/run-final \
		resume=auto
	$(BIN)/python -m musicgen_train.demo ship $(DEMO_MODEL)/run-final/composite $(DEMO_MODEL)/encoders/composite

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
	$(BIN)/python scripts/benchmark.py

.PHONY: clean
clean:  ## Remove caches and build products, not the virtual environment
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
