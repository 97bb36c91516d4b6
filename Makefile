# `make demo` and `make test` are all the set-up a fresh machine needs. Both make `.venv` from
# constraints.txt, which holds the exact versions this tree was tested with.

PYTHON ?= python3
BIN := .venv/bin
# Side by side on two cores, each worker taking over what the other has not begun.
PYTEST_ARGS ?= -n 2 --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := $(sort $(wildcard distrib/*.py distrib/*/*.py callbacks/*.py launch/*.py))

.PHONY: setup demo test lint bench clean

setup: .venv/installed .venv/linked

.venv/bin/python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y python3-venv; } || \
	    { echo 'This Python cannot make virtual environments: install python3-venv.' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt -U pip setuptools
	rm -rf build
	$(PIP) install -c constraints.txt --no-build-isolation -C editable_mode=strict -e '.[dev]'
	echo '$(SOURCES)' > .venv/linked
	touch $@

# The strict editable install is a tree of links, one for each file: link again when the list changes.
.venv/linked: .venv/installed FORCE
	@echo '$(SOURCES)' | cmp -s - $@ || { \
	    rm -rf build && \
	    $(PIP) install --no-deps --no-build-isolation -C editable_mode=strict -e . && \
	    echo '$(SOURCES)' > $@; }

FORCE:

demo: setup
	$(BIN)/python examples/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd tests && ../$(BIN)/mypy --config-file ../pyproject.toml -p distrib

test: lint
	$(BIN)/pytest $(PYTEST_ARGS)

bench: setup
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build runs
