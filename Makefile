# Each target does all the set-up it needs in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs format

demo: .venv/ready  ## train Z2CNN and gc-P4CNN on the bundled digits, print the table, draw the picture
	$(BIN)/sepgroupy demo

test: .venv/ready  ## lint, types, tests and doctests; the layers' tests once more without the compiled kernels
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q
	SEPGROUPY_NATIVE=0 $(BIN)/pytest -q tests/test_nn_*.py tests/test_functional_*.py tests/test_native_missing.py docs/native.md

docs: .venv/ready  ## the site, into site/: runs the tutorials, stops at a broken link or reference
	$(BIN)/pip install --quiet --editable '.[dev,docs]'
	$(BIN)/sphinx-build -W --keep-going -b html -d build/doctrees docs site

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml setup.py $(wildcard src/sepgroupy/backends/native/*.c src/sepgroupy/backends/native/*.inl)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
