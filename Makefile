# make demo     a fresh machine: environment, install, train on letters, write a word in letters it invented
# make test     what every change must pass; make test-all adds the long ones
# make lint     ruff and mypy
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORD   ?= sfumato

.PHONY: demo test test-all lint format clean
export PIP_DISABLE_PIP_VERSION_CHECK = 1

demo: $(VENV)/demo.installed
	$(BIN)/sfumato demo --word $(WORD)

test: $(VENV)/dev.installed lint
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-all: $(VENV)/dev.installed lint
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.installed
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

$(VENV)/%.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

# the trained runs kept in benchmarks/runs: the same command again on any machine
run-letters: $(VENV)/demo.installed
	$(BIN)/sfumato demo --out runs/letters
	$(BIN)/python benchmarks/keep.py runs/letters/run letters

run-fashion_ddpm: $(VENV)/demo.installed
	$(BIN)/sfumato train ddpm $(or $(SFUMATO_DATA),../shared/data)/fashion_mnist/train.npz --preset fashion --labels none --flip on --steps 1496 \
		--out runs/fashion_ddpm
	$(BIN)/python benchmarks/keep.py runs/fashion_ddpm fashion_ddpm
