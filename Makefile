# Two commands are enough: `make demo` and `make test-all`. Each makes .venv and installs what it needs when that is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= mixer-probe-demo

.PHONY: demo test test-fast test-all app bench bench-similarity bench-probes bench-channels bench-app gpu-test lint format clean

demo: $(VENV)/.installed
	$(BIN)/mixer-probe demo --out $(OUT)

# Files of tests in two to four processes, as there are cores, since each test runs on one thread; tests/conftest.py puts the longest files first.
PROCESSES := $(shell n=$$(nproc 2>/dev/null || echo 2); test $$n -ge 2 || n=2; test $$n -le 4 || n=4; echo $$n)
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev
	$(PYTEST) -m "not gpu and not browser" --faster-than 2

test-fast: $(VENV)/.dev
	$(PYTEST) -m "not gpu and not browser" --faster-than 0.05

test-all: $(VENV)/.dev
	$(PYTEST)

app: $(VENV)/.installed
	$(BIN)/mixer-probe app

bench: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/bench_capture.py

bench-similarity: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/bench_similarity.py

bench-probes: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/bench_probes.py

bench-channels: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/bench_channels.py

bench-app: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/bench_app.py

gpu-test: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict mixer_probe
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mixer_probe needs Python 3.11 or newer; set PYTHON=python3.12, say"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 has no venv module: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
