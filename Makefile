# make demo   the built-in pair remembers what its context has lost
# make test   lint, types and the quick tests
# make docs   the pages of docs/ with a reference, in site/
# All make .venv and install into it first, on macOS and Linux, with any Python from 3.11 on.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
MODELS := .models
PYTEST := $(BIN)/python -m pytest
CHROMIUM := chromium chromium-browser google-chrome google-chrome-stable

# Apple machines get the Metal build of mlx by default; Linux has to name a backend.
ifeq ($(shell uname -s),Linux)
EXTRAS := test,linux
else
EXTRAS := test
endif

.PHONY: demo test lint format docs test-slow test-browser test-metal test-real install clean

demo: $(STAMP)
	$(BIN)/deltamem-mlx demo

test: lint
	$(PYTEST) -q -n auto --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

test-slow: $(STAMP)
	$(PYTEST) -q -m slow

test-browser: $(STAMP)
	@for name in $(CHROMIUM); do command -v $$name >/dev/null && exit; done; \
	if [ -z "$$DELTAMEM_CHROMIUM" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -qq --no-install-recommends chromium; \
	fi  # a container, as CI may have; elsewhere a test says what is missing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[browser]"
	$(PYTEST) -q -m browser --only-skips tests/skips.txt tests/serve/page

test-metal: $(STAMP)
	$(PYTEST) -q -m metal

test-real: $(STAMP) $(MODELS)/smollm2-float32 $(MODELS)/smollm2-q4 $(MODELS)/gemma3-float32
	$(PYTEST) -q -m real_model

install: $(STAMP)

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MODELS)/smollm2-%: | $(STAMP)
	$(BIN)/python examples/smollm2.py $@ --dtype $*

$(MODELS)/gemma3-%: | $(STAMP)
	$(BIN)/python examples/gemma3.py $@ --dtype $*

# A Python counts if it is new enough and can make a virtual environment. PYTHON=... overrides.
$(STAMP): pyproject.toml
	@set -e; found=; \
	for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
			>/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "No Python >= 3.11 with venv found. Install one (macOS: brew install python@3.12;" \
			"Debian: apt install python3-venv), or say where it is: make PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi; \
	echo "Installing into $(VENV) with $$($$found --version); the first time takes a minute or two."; \
	$$found -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"; \
	touch $@
