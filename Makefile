# Everything here works on a fresh clone: each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEWEST := .venv-newest

.PHONY: help study test check test-newest test-ndif devices gpu real-size golden docs docs-serve bench growth demo lint style setup train figures gallery clean

help:
	@echo "make study    a first look at the three embedded pairs; reports in runs/"
	@echo "make test     lint, types and tests"
	@echo "make check    lint, types and a tenth of the tests, while one writes"
	@echo "make test-newest  the engine's tests with the newest of every library, in $(NEWEST)"
	@echo "make test-ndif  a real NDIF server on loopback, and the operations on it"
	@echo "make devices  every family and stage on a pretended GPU, on two, and with little memory"
	@echo "make gpu      what a GPU gives and takes, in 12 minutes: runs/gpu/gpu.md"
	@echo "make real-size  LLaVA-1.5-7B's true shape on a CPU: 14 GB of disk, 15 of memory"
	@echo "make setup    only the environment, in $(VENV)"
	@echo "make train    retrain the embedded pairs from scratch (about 45 minutes)"
	@echo "make golden BEFORE=COMMIT  whether studies and operations give the numbers they gave"
	@echo "make docs     the documentation, in site/; make docs-serve shows it while it is written"
	@echo "make bench    time sweeps, attribution, probes and collection beside other libraries"
	@echo "make growth   how a sweep's cost grows with cells, tokens and layers: docs/growth.png"
	@echo "make demo     TransformerLens' activation patching demo beside ours, cell by cell"
	@echo "make figures  remake the figures of the README from runs/"
	@echo "make gallery  remake the pictures of docs/gallery.md (3 minutes)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name one: make PYTHON=python3.12 setup"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python cannot make environments here. On Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

study: $(READY)
	@$(BIN)/twohop study flags-naming flags-aligned flags-late --preset quick

style: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

lint: style
	@$(BIN)/pyright

# Files of tests run side by side, those with whole studies first, one thread each: small models
# gain nothing from more. Types are looked at meanwhile, as pyright leaves cores idle.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
TYPES := $(VENV)/types.log
beside_types = $(BIN)/pyright >$(TYPES) 2>&1 & types=$$!; \
  $(1); tests=$$?; wait $$types || { cat $(TYPES); exit 1; }; exit $$tests

test: style
	@$(call beside_types,$(PYTEST) --no-loadscope-reorder --durations=25)

# Every tenth test that runs no study; which, tests/support/tenth.py says.
check: style
	@$(call beside_types,$(PYTEST) --tenth)

# Installed without constraints.txt, and anew each time, to see what 'pip install .' brings today.
# Of torch alone it keeps the pin: its newest build may be gigabytes of CUDA.
test-newest:
	@$(PYTHON) -m venv $(NEWEST)
	@grep '^torch==' constraints.txt > $(NEWEST)/torch.txt
	@echo "Installing the newest into $(NEWEST) (a few minutes the first time) ..."
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --upgrade --upgrade-strategy eager -c $(NEWEST)/torch.txt -e '.[dev]'
	@$(NEWEST)/bin/python -m pip freeze --disable-pip-version-check --exclude-editable
	@OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n auto --dist loadfile \
	  interventions tests/engine

test-ndif: $(READY)
	@examples/ndif/setup.sh .venv-ndif
	@$(BIN)/python tests/ndif/launch.py

# What runs on no GPU here: memory of the CPU under another name, which refuses what CUDA refuses.
devices: $(READY)
	@ALL_DEVICES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/study/test_devices.py

# Random weights at 7B shapes. Without a GPU it says so; the tests run it small, on the pretended one.
gpu: $(READY)
	@PYTHONPATH=tests:tests/support $(BIN)/python -m hardware.gpu

real-size: $(READY)
	@PYTHONPATH=tests:tests/support $(BIN)/python -m hardware.real_size

# The code of a commit and the code that is here run the same; what they gave is compared.
GOLDEN = $(CURDIR)/runs/golden
golden: $(READY)
	@test -n "$(BEFORE)" || { echo "Name a commit to compare with: make golden BEFORE=main"; exit 2; }
	@commit=$$(git rev-parse --short "$(BEFORE)") && code=$(GOLDEN)/$$commit/code && \
	  mkdir -p $$code && git archive $$commit | tar -x -C $$code && \
	  (cd $$code && PYTHONPATH=$$code $(CURDIR)/$(BIN)/python $(CURDIR)/tests/support/golden.py make ../gave) && \
	  rm -rf $(GOLDEN)/here && $(BIN)/python tests/support/golden.py make $(GOLDEN)/here && \
	  $(BIN)/python tests/support/golden.py compare $(GOLDEN)/$$commit/gave $(GOLDEN)/here

train: $(READY)
	@$(BIN)/twohop train flags

figures: $(READY)
	@$(BIN)/twohop compare runs/flags-naming runs/flags-aligned runs/flags-late --out runs/compare
	@cp runs/compare/figures/compare-recovery.png docs/recovery.png
	@cp runs/flags-late/figures/timetable.png docs/timetable.png

gallery: $(READY)
	@$(BIN)/python examples/gallery.py

# Sources are read, not imported; a broken link or reference is an error. The extra is installed
# when it is missing.
DOCS_READY := $(VENV)/.docs-ready

$(DOCS_READY): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(DOCS_READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

docs-serve: $(DOCS_READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict

# The other libraries are installed in an environment of their own, with the same pins as ours.
BENCH := .venv-bench
BENCH_READY := $(BENCH)/.ready

$(BENCH_READY): tests/benchmarks/requirements.txt pyproject.toml constraints.txt | $(READY)
	@$(BIN)/python -m venv $(BENCH)
	@echo "Installing into $(BENCH) (a few minutes the first time) ..."
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -r $<
	@touch $@

bench: $(BENCH_READY)
	@PYTHONPATH=tests:tests/support $(BENCH)/bin/python -m benchmarks $(BENCH_ARGS)

# The maps of TransformerLens' activation patching demo beside ours, cell by cell.
demo: $(BENCH_READY)
	@PYTHONPATH=tests:tests/support $(BENCH)/bin/python -m benchmarks.demo

# How a sweep's cost grows, beside a forward pass for each cell; the picture is that of the docs.
growth: $(READY)
	@PYTHONPATH=tests:tests/support $(BIN)/python -m benchmarks.growth
	@cp runs/growth/growth.png docs/growth.png

clean:
	rm -rf $(VENV) $(BENCH) $(NEWEST) runs site
