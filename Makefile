# Needs make, Python 3.11 or newer and pip; everything else goes into .venv.
#   make train ARGS="--total-episodes 20000"    options of `fleet train`
#   make defenders POLICY=one-policy SEED=2     trains a shipped policy again, shows both tables
#   make test PIP_ARGS="--index-url ..."        options of `pip install`
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train defenders test test-slow fuzz lint format clean

train: $(VENV)/installed-learner
	@echo "Compiling the simulator (cached after the first time)"
	@$(BIN)/python -m rollout_worker.environments.cage2
	@$(BIN)/fleet train $(ARGS)

defenders: $(VENV)/installed-learner
	@test -n "$(POLICY)" || { echo "Name a policy: make defenders POLICY=one-policy SEED=2"; exit 1; }
	@$(BIN)/python -m rollout_worker.environments.cage2
	@$(BIN)/python -m deploy.pretrained retrain "$(POLICY)" $(if $(SEED),--seed $(SEED)) $(ARGS)

test: lint
	@echo "Compiling the simulator (cached after the first time)"
	@$(BIN)/python -m rollout_worker.environments.cage2
	@echo "Tests"
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

fuzz: $(VENV)/installed-fuzz
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

test-slow: $(VENV)/installed-dev
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

lint: $(VENV)/installed-dev
	@echo "Lint, format, types, import contracts"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "The format differs: run make format"; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

format: $(VENV)/installed-dev
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find protocol rollout_worker learner deploy benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed, $(PYTHON) is none: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	    { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: python3-venv)"; exit 1; }
	@echo "Making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[$*]'
	@touch $@
