# Every target is one line: a call of `python -m search`, or of a tool that checks it. `make help` lists them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m search
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help search baseline train export spaces list preflight diagnose audit test check lint types format bench clean

help: ## list the targets and the variables
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'
	@if [ -f $(STAMP) ]; then echo; $(RUN) variables; fi

search: $(STAMP) ## search a space: SPACE=plateau [STUDY= TRIALS= BUDGET_TOKENS= ...]
	@$(RUN) run

baseline: $(STAMP) ## run the documented configuration alone [COMPARE=before]
	@$(RUN) baseline

train: $(STAMP) ## train one configuration from the variables
	@$(RUN) train

export: $(STAMP) ## print the best configuration of STUDY=latest: eval "$$(make -s export)"
	@$(RUN) export

spaces: $(STAMP) ## list and check the space files
	@$(RUN) spaces

list: $(STAMP) ## list the studies
	@$(RUN) list

test: $(STAMP) ## run the tests
	@$(VENV)/bin/python -m pytest

check: lint types test ## lint, types and tests, as CI does

lint: $(STAMP) ## ruff and ruff format
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: $(STAMP) ## mypy --strict
	@$(VENV)/bin/mypy

format: $(STAMP) ## format the code
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

clean: ## remove caches; studies stay
	@rm -rf .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "error: Python 3.11 or newer is needed and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % v[:2])'
	@echo "setting up $(VENV) (once; a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@rm -f $(STAMP); ( $(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]' && touch $(STAMP) ) > $(VENV)/setup.log 2>&1 & \
	while kill -0 $$! 2>/dev/null; do sleep 2; printf '\r  %3d packages found, %s' "$$(grep -cE '^(Collecting|Requirement already)' $(VENV)/setup.log)" "$$(tail -1 $(VENV)/setup.log | cut -c1-50)          "; done; echo
	@test -f $(STAMP) || { grep -iE '^ *(error|could not)' $(VENV)/setup.log | head -5 >&2; echo "error: setting up failed; the whole log: $(VENV)/setup.log" >&2; exit 1; }
