# Every target is one line: a call of `python -m search`, or of a tool that checks it. `make help` lists them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m search
STAMP := $(VENV)/.installed
# On Linux PyPI's torch brings gigabytes of CUDA packages. Without an NVIDIA driver its CPU build is enough.
TORCH_INDEX ?= $(shell [ "$$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia ] && ! command -v nvidia-smi > /dev/null && echo https://download.pytorch.org/whl/cpu)

# By their own name, for make 3.81 tells them by no other: a misspelt variable must not pass unnoticed.
export MAKE_WORDS := $(MAKEOVERRIDES)
# Of the shell, which -C does not change: where the next steps are to be typed.
export MAKE_CALLED_FROM := $(PWD)

ifeq ($(wildcard pyproject.toml),)
$(error This Makefile is to be called in its own folder: make -C '$(strip $(subst /Makefile,,$(MAKEFILE_LIST)))' $(MAKECMDGOALS))
endif

.DEFAULT_GOAL := help
# `make -j search report`: the report is of that search.
.NOTPARALLEL:
COMMANDS := help search resume baseline train preflight confirm attribute report diagnose audit export model spaces compare list test check lint types format bench faults clean
.PHONY: $(COMMANDS)

help: ## list the commands and the variables
	@awk -F ':.*## ' '/^## /{printf "\n%s\n", substr($$0, 4)} /^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@if [ -f $(STAMP) ]; then $(RUN) variables; fi

## search

search: $(STAMP) ## search a space: SPACE=plateau [TRIALS= BUDGET_TOKENS=]
	@$(RUN) run

resume: $(STAMP) ## go on with STUDY=latest [TRIALS=+24 for more trials]
	@$(RUN) resume

baseline: $(STAMP) ## run the documented configuration alone [COMPARE=before]
	@$(RUN) baseline

## check

preflight: $(STAMP) ## check in half a minute that the set-up is sound [SPACE=]
	@$(RUN) preflight

audit: $(STAMP) ## say what is wrong with the text [RANGE=2.0M-2.5M CLEAN=out.txt]
	@$(RUN) audit

diagnose: $(STAMP) ## say what is wrong with a study, log or checkpoint: TARGET=
	@$(RUN) diagnose

## prove and explain

confirm: $(STAMP) ## run the best trials again on fresh seeds: STUDY=latest [TOP=2 SEEDS=5]
	@$(RUN) confirm

attribute: $(STAMP) ## find which of the changed settings did it: STUDY=latest
	@$(RUN) attribute

report: $(STAMP) ## write report.html and report.md of STUDY=latest
	@$(RUN) report

## train and take away

train: $(STAMP) ## train one configuration from the variables
	@$(RUN) train

model: $(STAMP) ## write the best model of STUDY=latest to a folder [OUT=folder]
	@$(RUN) model

export: $(STAMP) ## print the best configuration of STUDY=latest
	@$(RUN) export

## look around

list: $(STAMP) ## list the studies
	@$(RUN) list

compare: $(STAMP) ## set studies side by side: STUDY=a,b
	@$(RUN) compare

spaces: $(STAMP) ## list and check the space files
	@$(RUN) spaces

## develop

test: $(STAMP) ## run the tests
	@$(VENV)/bin/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

check: lint types test ## lint, types and tests, as CI does

lint: $(STAMP) ## ruff and ruff format
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: $(STAMP) ## mypy --strict
	@$(VENV)/bin/mypy

format: $(STAMP) ## format the code
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

bench: $(STAMP) ## run the benchmarks of tests/benchmarks; BENCH=search_speed runs that one
	@for script in tests/benchmarks/$(or $(BENCH),*_*).py; do echo "== $$script"; $(VENV)/bin/python $$script || exit 1; done

faults: $(STAMP) ## break searches in every way, two hours; FAULTS="walk soak" does these
	@unset MAKEFLAGS MAKEOVERRIDES MAKELEVEL MAKE_WORDS MAKE_CALLED_FROM; lost=; for name in $(or $(FAULTS),$(filter-out common inject nodes,$(basename $(notdir $(wildcard tests/faults/*.py))))); do echo "== $$name"; $(VENV)/bin/python tests/faults/$$name.py || lost="$$lost $$name"; done; [ -z "$$lost" ] || { echo "lost in:$$lost"; exit 1; }

clean: ## remove caches, keep studies
	@rm -rf .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

# `make search help` asks: nothing else runs.
ifneq ($(filter help,$(MAKECMDGOALS)),)
$(filter-out help,$(COMMANDS)): SHELL := true
endif

# A word that is no command is answered with the nearest one, and before anything runs: `make search plateau`.
UNKNOWN := $(filter-out $(COMMANDS) $(STAMP),$(MAKECMDGOALS))
ifneq ($(UNKNOWN),)
.PHONY: $(UNKNOWN)
$(or $(filter $(COMMANDS),$(MAKECMDGOALS)),help): $(UNKNOWN)
$(UNKNOWN):
	@if [ -f $(STAMP) ]; then $(RUN) '$@'; else echo "error: there is no command '$@'. make help lists them." >&2; exit 2; fi
endif

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "error: Python 3.11 or newer is needed and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % v[:2])'
	@echo "setting up $(VENV) (once; a minute or two) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(VENV) cannot be made. Name a folder of your own: make VENV=/folder $(MAKECMDGOALS)" >&2; exit 1; }
	@[ -z "$(TORCH_INDEX)" ] || { echo "  no NVIDIA driver here: getting torch's CPU build (about 200 MB) ..."; \
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check --retries 0 --timeout 15 --no-deps --index-url $(TORCH_INDEX) $$(grep '^torch==' constraints.txt) 2> /dev/null \
	|| echo "  $(TORCH_INDEX) did not answer: PyPI's torch is taken, which brings CUDA packages of some gigabytes"; }
	@rm -f $(STAMP); ( $(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]' && touch $(STAMP) ) > $(VENV)/setup.log 2>&1 & \
	while kill -0 $$! 2>/dev/null; do sleep 2; [ -t 1 ] && printf '\r  %3d packages found, %s' "$$(grep -cE '^(Collecting|Processing)' $(VENV)/setup.log)" "$$(tail -1 $(VENV)/setup.log | cut -c1-50)          "; done; echo
	@test -f $(STAMP) || { grep -iE '^ *(error|could not)' $(VENV)/setup.log | head -5 >&2; echo "error: setting up failed; the whole log: $(VENV)/setup.log" >&2; exit 1; }
