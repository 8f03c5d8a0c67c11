# Everything creates what it needs: a .venv with uv and the pinned requirements.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# uv sees the user's wheel folders only when told; without any, PyTorch's own CPU index is asked for torch.
FIND_LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null || printf '%s' "$$PIP_FIND_LINKS")
TORCH := $(if $(FIND_LINKS),,--torch-backend cpu)
# Tests run side by side, one process for each core.
JOBS ?= auto

.PHONY: quickstart test fuzz slow lint bench requirements clean

quickstart: $(VENV)/ready
	$(BIN)/bundler quickstart

test: $(VENV)/ready
	$(BIN)/coverage erase
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" --cov --cov-report=
	$(BIN)/coverage report --format=total | sed 's/^/branch coverage, percent: /'

# Other inputs each time, for FUZZ_SECONDS (60 by default); FUZZ_SEED repeats a run.
fuzz: $(VENV)/ready
	$(BIN)/python -m tests.fuzz

slow: $(VENV)/ready
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m slow

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/ready
	$(BIN)/python -m benchmarks

requirements: $(VENV)/ready
	cd requirements && for name in dev; do \
	  UV_FIND_LINKS="$(FIND_LINKS)" ../$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-header --no-emit-index-url \
	    --no-emit-find-links --python-version 3.11 --python-platform x86_64-manylinux_2_28 $$name.in -o $$name.txt; done

$(VENV)/ready: requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/uv.txt
	UV_FIND_LINKS="$(FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(BIN)/python $(TORCH) --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis quickstart-demo
