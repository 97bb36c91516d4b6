# `make demo` and `make test` are all the set-up a fresh machine needs. Both make `.venv` from
# constraints.txt, which holds the exact versions this tree was tested with, and build Horovod for
# it, once: the wheel is kept in `.cache`, which `make clean` leaves alone.

PYTHON ?= python3
BIN := .venv/bin
# Side by side on two cores, each worker taking over what the other has not begun.
PYTEST_ARGS ?= -n 2 --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
LINK := rm -rf build && $(PIP) install -c constraints.txt --no-build-isolation -C editable_mode=strict -e
# What is called and the Debian package that has it. Without a compiler there is no Horovod; the
# others serve single tests, which are skipped without them.
PROGRAMS := c++:g++ mpirun:openmpi-bin ip:iproute2 ssh:openssh-client sshd:openssh-server \
    radosgw:radosgw ceph-mon:ceph-mon ceph-osd:ceph-osd ceph:ceph-common podman:podman runc:runc \
    debootstrap:debootstrap munged:munge sbatch:slurm-client slurmctld:slurmctld slurmd:slurmd
# The modules that decide how Horovod's wheel for CPUs is built, and what one for GPUs needs besides.
WHEEL := $(addprefix launch/horovod/,pip.py recipe.py toolchain.py wheel.py)
GPU_WHEEL := $(addprefix launch/horovod/,cuda.py cuda_adapter.h cuda_adapter.py cuda_toolkit.py linkage.py)
# Once `make gpu` has built Horovod for GPUs, the other targets keep it. `rm .venv/horovod-gpu` makes
# the next `make setup` put the one for CPUs back.
HOROVOD := $(if $(wildcard .venv/horovod-gpu),.venv/horovod-gpu,.venv/horovod)
SOURCES := $(sort $(wildcard launch/*/*.h distrib/*.py distrib/*/*.py distrib/*/*/*.py callbacks/*.py launch/*.py launch/*/*.py))

.PHONY: setup demo test exhaustive gpu lint chaos bench clean

setup: .venv/installed .venv/linked $(HOROVOD)

.venv/bin/python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y python3-venv; } || \
	    { echo 'This Python cannot make virtual environments: install python3-venv.' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt -U pip setuptools
	$(LINK) '.[dev]'
	echo '$(SOURCES)' > .venv/linked
	touch $@

# The strict editable install is a tree of links, one for each file: link again when the list changes.
.venv/linked: .venv/installed FORCE
	@echo '$(SOURCES)' | cmp -s - $@ || { $(LINK) . --no-deps && echo '$(SOURCES)' > $@; }

FORCE:

.venv/horovod: .venv/installed $(WHEEL) | .venv/linked .venv/programs
	$(BIN)/distrib horovod build --no-gpu --cache .cache/horovod
	touch $@

# TensorFlow with its libraries of CUDA, and Horovod with NCCL. The stamp of the one for CPUs goes
# first: if this fails halfway, `make setup` puts that back.
.venv/horovod-gpu: .venv/installed $(WHEEL) $(GPU_WHEEL) | .venv/linked .venv/programs
	rm -f .venv/horovod
	$(LINK) '.[gpu]'
	echo '$(SOURCES)' > .venv/linked
	$(BIN)/distrib horovod build --gpu --cache .cache/horovod
	touch $@

.venv/programs: | .venv/bin/python
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for entry in $(PROGRAMS); do \
	    command -v $${entry%:*} >/dev/null || missing="$$missing $${entry#*:}"; \
	done; \
	echo '#include <mpi.h>' | mpicxx -x c++ -E - >/dev/null 2>&1 || \
	    missing="$$missing libopenmpi-dev"; \
	[ -z "$$missing" ] || { \
	    [ "$$(id -u)" = 0 ] && echo "installing$$missing" && apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive \
	    apt-get -qq install -y --no-install-recommends $$missing >/dev/null; } || \
	    echo "Not installed:$$missing. Horovod's build needs g++; tests do without the others." >&2
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd tests && ../$(BIN)/mypy --config-file ../pyproject.toml -p distrib
	cd tests && ../$(BIN)/lint-imports --no-cache ../pyproject.toml
	$(BIN)/shellcheck launch/*.sh launch/slurm.sbatch .ci/run

test: lint
	$(BIN)/pytest $(PYTEST_ARGS)

# CHAOS_ARGS='--faults 20 --seed 1' repeats a plan that has failed.
chaos: setup
	$(BIN)/python tests/integration/chaos.py $(CHAOS_ARGS)

# Variations of what `make test` shows: on more ranks, on other backends.
exhaustive: setup
	$(BIN)/pytest $(PYTEST_ARGS) -m exhaustive

# What needs NVIDIA GPUs, in ten minutes after Horovod's build; `DISTRIB_TEST_DEVICES=cpu make gpu`
# tries it without.
DISTRIB_TEST_DEVICES ?= gpu
gpu: export DISTRIB_TEST_DEVICES := $(DISTRIB_TEST_DEVICES)
gpu: $(if $(filter cpu,$(DISTRIB_TEST_DEVICES)),setup,.venv/installed .venv/linked .venv/horovod-gpu)
	$(BIN)/pytest -m gpu tests/gpu
	$(BIN)/python benchmarks/gpu.py

bench: setup
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build runs
