# Everything runs in .venv, made on first use from `python3` and pip.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
WORKDIR ?= runs/quickstart
# Processes that run tests.
WORKERS ?= 2
# One run at a time on a small machine; XLA finds its compiled programs again.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: install quickstart test test-slow claims bench lint clean

install: $(STAMP)

$(STAMP): setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# libtpu, for the kernels' compile gate; only the tests want it.
$(STAMP)-tpu: $(STAMP)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[dev,tpu]'
	touch $@

quickstart: $(STAMP)  ## Warm start, then SDAR, on generated household games.
	$(RUN) -m experiments.quickstart --workdir=$(WORKDIR)

test: $(STAMP)-tpu  ## The fast tests.
	$(RUN) -m pytest -n $(WORKERS) -m 'not slow'

test-slow: $(STAMP)-tpu  ## The tests that take minutes.
	$(RUN) -m pytest -n $(WORKERS) -m slow

claims: $(STAMP)  ## The paper experiments; hours, resumable.
	$(RUN) -m experiments.claims.sdar
	$(RUN) -m experiments.claims.fg2_gdn
	$(RUN) -m experiments.claims.rdpo --study=synthetic
	for s in equal scaled loud; do $(RUN) -m experiments.claims.rdpo --setting=$$s || exit; done
	$(RUN) -m experiments.claims.aopd

bench: $(STAMP)  ## Speed ratios: environments, kernels, methods.
	$(RUN) -m experiments.bench envs
	$(RUN) -m experiments.bench kernels
	$(RUN) -m experiments.bench sparse
	$(RUN) -m experiments.bench transforms

lint: $(STAMP)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) .jax_cache
