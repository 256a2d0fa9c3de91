# What a person types. Everything is installed into .venv, from the pinned and hashed constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin

# $(call install_or_say,PACKAGE,WHAT IS WRONG): installs a system package if we may, else says how.
define install_or_say
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  echo "$(2): installing $(1) …"; apt-get update -qq && apt-get install -y -qq $(1) >/dev/null; \
else \
  echo "$(2). Install $(1), for instance: sudo apt-get install $(1)" >&2; exit 1; \
fi
endef

.PHONY: help demo ui clean-demo test test-large check torture soak lint bench audit setup gpg bwrap nginx

help:  ## This list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: setup  ## A backup of a sample database, through Dagster, to a real S3 server; all under .demo/.
	@$(BIN)/python -m demo

ui: setup  ## Dagster's web pages on 127.0.0.1: your .env's databases, or the demo's. Ctrl-C ends it.
	@exec $(BIN)/python -m demo.ui

clean-demo:  ## Remove everything the demo made.
	@[ ! -e .demo/running ] || flock --nonblock .demo/running true \
	  || { echo "The demo's servers are running: end make ui first." >&2; exit 1; }
	rm -rf .demo

test: check  ## Lint, types, rooms and all tests, set-up included. What CI runs.

check: lint nginx  ## The same.
	$(BIN)/python -m pytest

test-large: setup  ## Tests with gigabytes: minutes each, and some 15 GB of disk.
	$(BIN)/python -m pytest -m large --numprocesses=0

torture: setup  ## Faults of every kind at every moment, half an hour; writes docs/RELIABILITY.md.
	$(BIN)/python -m torture --write

soak: setup  ## Five hundred nights with faults, half an hour; writes docs/RELIABILITY.md.
	$(BIN)/python -m torture.soak --write

lint: setup  ## ruff, mypy, and the contracts between the rooms.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup  ## Measure against pg_dump and the usual pipelines; writes benchmarks/RESULTS.md.
	$(BIN)/python -m benchmarks

audit: setup  ## Look whether a dependency has a known hole. It asks over the network, so make test leaves it out.
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement constraints.txt

setup: gpg bwrap .venv/ready  ## Install everything into .venv.

.venv/ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=python3.11 …" >&2; exit 1; }
	@echo "Setting up .venv (once; about a minute) …"
	@[ -x $(BIN)/python ] || $(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  $(call install_or_say,python3-venv,Python cannot make a virtual environment); }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --config-settings editable_mode=compat --editable .
	@touch $@

gpg:
	@command -v gpg >/dev/null || { $(call install_or_say,gnupg,gpg is missing); }

# Everything else works without it, so that it cannot be had ends nothing; the drill says what it lacks.
bwrap:
	@command -v bwrap >/dev/null || ( $(call install_or_say,bubblewrap,Drills want bubblewrap) ) || true

# One test file alone wants it, and is skipped without. It comes as a service, so it is installed only where none is
# started: in a container.
nginx:
	@PATH="$$PATH:/usr/sbin" command -v nginx >/dev/null || [ -d /run/systemd/system ] \
	  || ( $(call install_or_say,nginx-light,The test of deploy/nginx wants nginx) ) || true
