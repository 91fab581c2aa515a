# Each target does all the set-up it needs in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs format

demo: .venv/ready  ## train Z2CNN and gc-P4CNN on the bundled digits, print the table, draw the plot
	$(BIN)/sepgroupy demo

test: .venv/ready  ## lint, types, tests and doctests; the layers' tests once more without the compiled kernels
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadfile
	SEPGROUPY_NATIVE=0 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadfile tests/test_nn_*.py tests/test_functional_*.py tests/test_native_missing.py docs/native.md

docs: .venv/ready  ## the site, into site/: runs the tutorials; stops at a broken link, a missing docstring, a page too wide
	$(BIN)/sphinx-build -W --keep-going -b html -d build/doctrees docs site
	$(BIN)/python tests/check_site.py site

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
