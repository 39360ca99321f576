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

# $(call fashion,NAME,PAPER,PRESET,STEPS,MORE): ten minutes of one core
FASHION := $(or $(SFUMATO_DATA),../shared/data)/fashion_mnist/train.npz
define fashion
	$(BIN)/sfumato train $(2) $(FASHION) --labels none --flip on --preset $(3) --steps $(4) --threads 1 --out runs/$(1) $(5)
	$(BIN)/python benchmarks/keep.py runs/$(1) $(1)
endef
run-fashion_ddpm: $(VENV)/demo.installed
	$(call fashion,fashion_ddpm,ddpm,fashion,3000)
run-fashion_improved_ddpm: $(VENV)/demo.installed
	$(call fashion,fashion_improved_ddpm,improved_ddpm,fashion,3000)
run-fashion_vp: $(VENV)/demo.installed
	$(call fashion,fashion_vp,score_sde,fashion,3000)
run-fashion_subvp: $(VENV)/demo.installed
	$(call fashion,fashion_subvp,score_sde,fashion_subvp,3000)
run-fashion_ve: $(VENV)/demo.installed
	$(call fashion,fashion_ve,score_sde,fashion_ve,3000)
run-fashion_cld: $(VENV)/demo.installed
	$(call fashion,fashion_cld,cld,fashion,3000)
run-fashion_edm: $(VENV)/demo.installed
	$(call fashion,fashion_edm,edm,fashion,3000)
run-fashion_flow: $(VENV)/demo.installed
	$(call fashion,fashion_flow,flow_matching,fashion,3000)
run-fashion_consistency: run-fashion_edm
	$(call fashion,fashion_consistency,consistency,fashion,1500,--from runs/fashion_edm)
