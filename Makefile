# Two commands set everything up: `make demo` and `make test`. Needs Python 3.11, 3.12 or 3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process a core, four at most: a test of a federation starts eight processes of its own. Files go to one process whole.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not gpu' \
	--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test coverage lint types imports format bundle clean

help:
	@echo 'make demo      a federation of three simulated hospitals, to the report (a few minutes)'
	@echo 'make test      lint, types, import rules and all tests this machine can run'
	@echo 'make coverage  the tests again, and which lines they run'
	@echo 'make format    let ruff format and mend the code'
	@echo 'make bundle    a folder of wheels for hospitals without a package index (3 GB)'
	@echo 'make clean     remove the environment and what the demo made'

# uv installs in seconds what pip takes minutes for; it lives inside the environment.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed, and $(PYTHON) is another: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/aecnn-simulate run configs/demo.yaml

test: $(READY) lint types imports
	$(PYTEST)

# Apart from `make test`: on Python 3.11 it makes the tests a quarter slower.
coverage: $(READY)
	$(PYTEST) --cov

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bundle: $(READY)
	deploy/bundle.sh $(BIN)/python dist/bundle

clean:
	rm -rf $(VENV) runs
