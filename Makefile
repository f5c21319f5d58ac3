# Everything here sets itself up: git, make and Python 3.11 or newer (with venv) are enough.
# PYTHON=/path/to/python3 chooses the interpreter of a new .venv; otherwise the first below that works is taken.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv test lint format demo bench expected constraints clean

VENV    := .venv
BIN     := $(VENV)/bin
CODE    := $(wildcard proxy tests bench)
# The venv carries what may run (base) and, on top, what tests need (dev); each stamp is as new as its pins.
BASE    := $(VENV)/base.stamp
DEV     := $(VENV)/dev.stamp
NODE    := tests/node/node_modules/.stamp
PIP     := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Hashes are checked for every package, the build backend included; only then is this folder itself installed.
install = $(PIP) install --require-hashes -r $(1) && $(PIP) install --no-deps --no-build-isolation -e . && $(PIP) check
UV      := uv
COMPILE := $(UV) pip compile --quiet --no-config --universal --python-version 3.11 --upgrade --generate-hashes \
	--annotation-style line --no-strip-extras --custom-compile-command "make constraints"

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(BASE)  ## create .venv with what the proxy needs to run

$(BIN)/python:
	@for python in $(PYTHON) $(if $(PYTHON),,python3.13 python3.12 python3.11 python3); do \
		"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo "make: $(VENV) with $$("$$python" --version)"; \
		exec "$$python" -m venv --clear $(VENV); \
	done; \
	echo "make: $(if $(PYTHON),$(PYTHON) is,there is) no Python 3.11 or newer with venv and ensurepip;" \
		"name $(if $(PYTHON),another,one) with PYTHON=" >&2; exit 1

$(BASE): constraints.txt pyproject.toml | $(BIN)/python
	@echo "make: installing what the proxy needs (constraints.txt)"
	@$(call install,constraints.txt) && touch $@

$(DEV): constraints-dev.txt constraints.txt pyproject.toml | $(BIN)/python
	@echo "make: installing what the tests need (constraints-dev.txt)"
	@$(call install,constraints-dev.txt) && touch $(BASE) $@

# Tests with nodemailer are skipped where node or the package is missing, so a failure here only costs those.
$(NODE): tests/node/package.json
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		echo "make: installing nodemailer for the tests"; \
		npm install --prefix tests/node --omit=optional --no-save --no-package-lock --no-audit --no-fund \
			--no-update-notifier --fetch-retries=1 --fetch-retry-mintimeout=1000 --loglevel=error && touch $@ || echo "make: no nodemailer; its tests are skipped"; \
	fi

test: lint $(NODE)  ## check style and types, run all tests, hold the coverage floor
	$(BIN)/python -m pytest -q -n 4 --cov $(ARGS)

lint: $(DEV)  ## check style and types
	$(BIN)/ruff check --quiet $(CODE)
	$(BIN)/ruff format --quiet --check $(CODE)
	$(BIN)/mypy

format: $(DEV)  ## mend what can be mended in style
	$(BIN)/ruff check --quiet --fix $(CODE)
	$(BIN)/ruff format $(CODE)

demo: $(BASE)  ## send one real message of each provider through the proxy, and show it before and after
	@exec $(BIN)/cmail-proxy demo

bench: $(BASE)  ## measure speed and memory here (ARGS=… is passed on)
	$(BIN)/python bench/run.py $(ARGS)

expected: $(DEV)  ## rewrite the expected files of the fixtures from what the proxy does now
	$(BIN)/python -m pytest -q tests/fixtures --write-expected $(ARGS)

constraints:  ## choose the newest versions and write both constraints files (needs uv)
	echo hatchling | $(COMPILE) pyproject.toml - -o constraints.txt
	echo hatchling | $(COMPILE) pyproject.toml --extra dev -c constraints.txt - -o constraints-dev.txt

clean:  ## remove all that make, the tests and the tools wrote
	rm -rf $(VENV) tests/node/node_modules dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
