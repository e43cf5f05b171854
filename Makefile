# make train     a model that pronounces English, in runs/g2p: installs, trains for 5 minutes, scores
# make test      the tests; make check: style and types
#
# Each target makes .venv, once, with what it needs. Variables:
#
#   PYTHON=python3.12    the Python that makes .venv (3.11 or newer)
#   ARGS=...             more arguments for the command: make train ARGS=--overwrite, make test ARGS='-k laws'
#
# pip reads its own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, …) from the environment, and from
# make's command line. On Linux, plain torch brings about 3 GB of CUDA libraries; for the CPU alone write
#
#   make train PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
RUN := runs/g2p

.PHONY: train test check docs bench trials clean
.NOTPARALLEL:

train: .venv/has-train
ifneq ($(ARGS),)
	$(BIN)/clearhead train g2p --minutes 5 $(ARGS)
else
	@if [ -e $(RUN)/model.safetensors ]; then \
		echo "$(RUN) is trained already. Train it anew: make train ARGS=--overwrite"; \
	elif [ -e $(RUN)/config.yaml ]; then \
		echo "$(RUN) was interrupted; going on. Begin anew: make train ARGS=--overwrite"; \
		$(BIN)/clearhead train g2p --minutes 5 --resume; \
	else \
		$(BIN)/clearhead train g2p --minutes 5; \
	fi
	@echo "Pronounce a word:   $(BIN)/clearhead predict $(RUN) attention"
	@echo "See what it does:   open $(RUN)/report.html in a browser"
endif

# as many tests side by side as there are cores, with a core each
test: .venv/has-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

# the long trials, which tests otherwise run in a reduced form
trials: .venv/has-dev
	OMP_WAIT_POLICY=passive CLEARHEAD_TRIALS=1 $(BIN)/python -m pytest $(ARGS)

check: .venv/has-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/has-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/has-dev
	$(BIN)/python bench/attend.py $(ARGS)

# everything that was made, but not what was trained
clean:
	rm -rf .venv build dist site src/*.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find src tests docs -name __pycache__ -prune -exec rm -rf {} +

# A stamp says what .venv holds. It is older than these two files when they change, and pip then looks again.
# Compiling on all cores afterwards takes half the time that pip takes on one; some packages hold templates that are no
# Python, which do not matter.
.venv/has-train: EXTRAS := train,demo
.venv/has-dev: EXTRAS := dev
.venv/has-docs: EXTRAS := docs
.venv/has-train .venv/has-dev .venv/has-docs: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
	@$(BIN)/python -m compileall -q -j 0 -x '/tests?/' .venv/lib >/dev/null 2>&1 || true
	@touch $@

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv .venv
