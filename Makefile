# Two commands: `make run` sets everything up and runs the pipeline; `make test` sets everything up and
# runs every check. Both keep a virtual environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: run test setup lint types unit smoke docs clean

run: $(VENV)/.installed
	$(BIN)/python interp_scripts/run_pipeline.py $(ARGS)

test: lint types unit smoke

setup: $(VENV)/.installed-dev

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python docs/make_help.py --check
	$(BIN)/python docs/make_disk_format.py --check

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# A process for each core, one thread each; what a file's tests share is made once.
unit: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

# A real run, end to end, in a temporary folder.
smoke: $(VENV)/.installed-dev
	folder=$$(mktemp -d) && $(BIN)/fluxscope run --out-dir $$folder/run && rm -r $$folder

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/make_help.py
	$(BIN)/python docs/make_disk_format.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) interp_output
