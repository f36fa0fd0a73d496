# Every target is one line: a call of `python -m search`, or of a tool that checks it. `make help` lists them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m search
STAMP := $(VENV)/.installed

# By their own name, for make 3.81 tells them by no other: a misspelt variable must not pass unnoticed.
export MAKE_WORDS := $(MAKEOVERRIDES)

ifeq ($(wildcard pyproject.toml),)
$(error This Makefile is to be called in its own folder: make -C $(dir $(lastword $(MAKEFILE_LIST))) $(MAKECMDGOALS))
endif

.DEFAULT_GOAL := help
# `make -j search report`: the report is of that search.
.NOTPARALLEL:
.PHONY: help search resume baseline train preflight confirm attribute report diagnose audit export model spaces compare list test check lint types format bench clean

help: ## list the targets and the variables
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'
	@if [ -f $(STAMP) ]; then echo; $(RUN) variables; fi

search: $(STAMP) ## search a space: SPACE=plateau [STUDY= TRIALS= BUDGET_TOKENS= ...]
	@$(RUN) run

resume: $(STAMP) ## go on with STUDY=latest [TRIALS=48 for more trials, BUDGET_TOKENS= for longer ones]
	@$(RUN) resume

baseline: $(STAMP) ## run the documented configuration alone [COMPARE=before]
	@$(RUN) baseline

train: $(STAMP) ## train one configuration from the variables
	@$(RUN) train

preflight: $(STAMP) ## check in half a minute that the set-up is sound [SPACE=]
	@$(RUN) preflight

confirm: $(STAMP) ## run the best trials again on fresh seeds: STUDY=latest [TOP=2 SEEDS=5]
	@$(RUN) confirm

attribute: $(STAMP) ## find which of the changes did it: STUDY=latest, or FROM=before TO=documented
	@$(RUN) attribute

report: $(STAMP) ## write report.html and report.md of STUDY=latest
	@$(RUN) report

diagnose: $(STAMP) ## say what is wrong with TARGET: a study, STUDY/TRIAL, a log, a checkpoint
	@$(RUN) diagnose

audit: $(STAMP) ## say what is wrong with TRAINING_DATA_SOURCE [RANGE=2.0M-2.5M CLEAN=out.txt]
	@$(RUN) audit

export: $(STAMP) ## print the best configuration of STUDY=latest: eval "$(make -s export)"
	@$(RUN) export

model: $(STAMP) ## write the best model of STUDY=latest to a folder: [OUT=folder DTYPE=fp32|bf16|fp16]
	@$(RUN) model

spaces: $(STAMP) ## list and check the space files
	@$(RUN) spaces

compare: $(STAMP) ## set studies side by side: STUDY=a,b
	@$(RUN) compare

list: $(STAMP) ## list the studies
	@$(RUN) list

test: $(STAMP) ## run the tests
	@$(VENV)/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

check: lint types test ## lint, types and tests, as CI does

lint: $(STAMP) ## ruff and ruff format
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: $(STAMP) ## mypy --strict
	@$(VENV)/bin/mypy

format: $(STAMP) ## format the code
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

bench: $(STAMP) ## run the benchmarks of tests/benchmarks
	@for script in tests/benchmarks/*_*.py; do echo "== $$script"; $(VENV)/bin/python $$script || exit 1; done

clean: ## remove caches; studies stay
	@rm -rf .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "error: Python 3.11 or newer is needed and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % v[:2])'
	@echo "setting up $(VENV) (once; a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@rm -f $(STAMP); ( $(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]' && touch $(STAMP) ) > $(VENV)/setup.log 2>&1 & \
	while kill -0 $$! 2>/dev/null; do sleep 2; [ -t 1 ] && printf '\r  %3d packages found, %s' "$$(grep -cE '^(Collecting|Processing)' $(VENV)/setup.log)" "$$(tail -1 $(VENV)/setup.log | cut -c1-50)          "; done; echo
	@test -f $(STAMP) || { grep -iE '^ *(error|could not)' $(VENV)/setup.log | head -5 >&2; echo "error: setting up failed; the whole log: $(VENV)/setup.log" >&2; exit 1; }
