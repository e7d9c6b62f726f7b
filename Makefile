# `make demo` and `make test` each set up what they need: a virtual environment from requirements.lock.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test setup lint types docs clean

demo: $(STAMP)
	$(BIN)/caeav demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

setup: $(STAMP)

# torch goes in first and alone: packages that merely ask for "some torch" then take the one that is there.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "caeav needs Python >= 3.11, found $$($(PYTHON) --version); set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy reads the packages as users get them: installed, not from this folder.
types: $(STAMP)
	rm -rf build/types build/lib && $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	cd build/types && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml -p caeav

# The site lies in build/site and opens from there; it loads nothing from elsewhere. Its search needs a server:
# python -m http.server -d build/site
docs: $(STAMP)
	grep '==' requirements.lock | grep -v '^torch' >build-constraints.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint build-constraints.txt "mkdocs-material>=9.6" "mkdocstrings[python]>=1"
	rm build-constraints.txt
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
