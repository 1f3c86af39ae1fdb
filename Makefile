# Everything here works on a fresh Debian or Ubuntu machine with git, make and Python 3.11 or newer.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help trial test lint type unit machines doctor setup report clean distclean runtimes companions

VENV := .venv
BIN := $(VENV)/bin
# The first of these that is there, starts, and is new enough; say PYTHON=... to choose yourself. The system's own comes
# first: what a user's shell finds may be a script that looks for one at each start, or one that takes longer to start.
PYTHON ?= $(shell for name in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$name; break; }; done)
# How to become root: nothing to say for root itself, sudo where there is one.
ROOT := $(shell [ "$$(id -u)" = 0 ] && echo env || command -v sudo)
WORKERS ?= 2
RUN ?= --quick

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

trial: $(VENV)/installed runtimes  ## Set up, then put every runtime of this machine through the voyage (RUN="--quick")
	@if [ -z "$(ROOT)" ]; then \
		$(BIN)/seatrial doctor || true; \
		echo "A trial makes namespaces, mounts and cgroups of its own: it needs root, and there is no sudo here." >&2; \
		echo "Run 'make trial' as root." >&2; exit 3; fi
	@status=0; $(ROOT) $(BIN)/seatrial run $(RUN) || status=$$?; \
		[ "$(ROOT)" = env ] || [ ! -d results ] || $(ROOT) chown -R "$$(id -u):$$(id -g)" results; exit $$status

test: $(VENV)/installed-dev runtimes companions lint type unit  ## Set up, then lint, type-check and test

lint: $(VENV)/installed-dev  ## Lint, formatting, and the direction of imports
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --diff --quiet .; exit 1; }
	@$(BIN)/lint-imports >$(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; exit 1; }

type: $(VENV)/installed-dev  ## Check types, strictly
	@$(BIN)/mypy --no-error-summary

unit: $(VENV)/installed-dev  ## Run the tests of Seatrial itself, as root where that can be had
	@$(ROOT) $(BIN)/pytest -q -p no:cacheprovider -n $(WORKERS) --dist loadgroup suites/selftest

machines: $(VENV)/installed-dev runtimes  ## Hold the quick trial in a virtual machine that is made here, and see it fail there
	@$(BIN)/seatrial setup vm
	@$(ROOT) $(BIN)/pytest -q -p no:cacheprovider -m vm suites/selftest

doctor: $(VENV)/installed  ## Say what this machine has, and which subjects will run
	@$(ROOT) $(BIN)/seatrial doctor

setup: runtimes  ## Install the runtimes that Debian packages, and crictl

runtimes: $(VENV)/installed
	@$(BIN)/seatrial setup

# What nothing but some tests of Seatrial itself needs.
companions: $(VENV)/installed
	@$(BIN)/seatrial setup uidmap criu qemu-user

report: $(VENV)/installed  ## Print the newest run once more
	@$(BIN)/seatrial report

clean: $(VENV)/installed  ## Remove what killed runs left on this machine
	@$(if $(ROOT),$(ROOT) $(BIN)/seatrial clean,echo "cleaning needs root, and there is no sudo here" >&2; exit 3)

distclean:  ## Remove the virtual environment and all caches
	@rm -rf $(VENV) .tox .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Seatrial needs Python 3.11 or newer, and found none: apt-get install python3, or say make PYTHON=/path/to/python3" >&2; \
		exit 3; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		package="python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"; \
		echo "installing $$package"; \
		command -v apt-get >/dev/null && [ -n "$(ROOT)" ] && { \
			$(ROOT) DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$package >/dev/null 2>&1 || \
			{ $(ROOT) apt-get -qq update && \
			$(ROOT) DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$package >/dev/null; }; } || { \
		echo "$(PYTHON) cannot make a virtual environment: install the package $$package" >&2; exit 3; }; }
	@$(PYTHON) -m venv --clear $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing Seatrial into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing Seatrial and its development tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/installed
