# Every target sets up .venv by itself, with venv and pip only; the second time costs nothing.
# Another interpreter:  make test PYTHON=python3.12
# A torch 2.9 that is already in .venv (a CPU build, say) is kept and not downloaded again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

DEMO := $(BIN)/mlpot md examples/alanine-dipeptide.pdb --steps 2000 --timestep 0.5 \
	--temperature 300 --out runs/demo --overwrite

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1

.PHONY: help demo test lint clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@echo "make demo   1 ps of alanine dipeptide at 300 K in OpenMM; results in runs/demo"
	@echo "make test   the test suite"
	@echo "make lint   ruff, mypy and the architecture test"
	@echo "make clean  remove caches and build output (keeps .venv and runs)"

demo: $(VENV)/.stamp-chem
	$(DEMO)

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest tests -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.stamp-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mlpot plugins tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# .stamp-<extra>: `.[<extra>]` is installed. Written last, so a failed install leaves no stamp.
$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "mlpot: installing '.[$*]' into $(VENV); the first time this downloads about" \
		"4.3 GB on Linux x86-64 (torch with its CUDA libraries), under 0.5 GB elsewhere"
	@$(BIN)/pip install -c constraints.txt -e '.[$*]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
		2>/dev/null || { echo "mlpot needs Python 3.11 to 3.14, but '$(PYTHON)' is" \
		"'$$($(PYTHON) --version 2>&1 | head -n 1)'. Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; }
	@echo "mlpot: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
