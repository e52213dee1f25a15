# One command surface for people and for CI. `make setup` is enough for everything else.
.DEFAULT_GOAL := help
.PHONY: help setup bundle demo demo-polyp experiment-demo test test-all wheel-test lint types bench bench-training docs settings-page check clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo
PEERS := build/peers
TRAINING_PEERS := build/peers-training
CLI := $(BIN)/python -m kdml_med.cli
OUT ?= $(RUN)/bundle
NETWORK ?= ensemble
# Two processes of one thread each: threads of several processes that share two cores mostly wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP)  ## make .venv with the tested versions of constraints.txt

# torch first and alone: any other order lets a dependency pull a newer build with gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cluster,dev,deploy,docs,openvino,pretrained,tables]'
	touch $@

demo: setup  ## generated slides -> tiles -> training -> test evaluation -> prediction of a slide -> report, in demo/
	$(CLI) demo --task msi --out $(DEMO)

$(DEMO)/tiles/splits.csv: | $(STAMP)
	$(CLI) demo --task msi --out $(DEMO) --data-only

demo-polyp: setup  ## generated clips -> frames -> training -> test evaluation -> boxes in a video -> report, in demo/
	$(CLI) demo --task polyp --out $(DEMO)

experiment-demo: $(DEMO)/tiles/splits.csv  ## every arm of the paper with two seeds on the generated slides, compared, in demo/experiment/
	$(CLI) compare docs/plans/demo.json --out $(DEMO)/experiment --jobs 2

bundle: setup  ## a MONAI bundle of a finished run: make bundle RUN=… [OUT=…] [NETWORK=student_0]
	@test -n "$(RUN)" || { echo "error: name the run: make bundle RUN=runs/crc" >&2; exit 2; }
	$(CLI) export "$(RUN)" --format monai-bundle --network $(NETWORK) --out "$(OUT)"

test: setup  ## fast tests, no network, no data of one's own
	HYPOTHESIS_PROFILE=fixed $(PYTEST) -m "not slow and not real_data"

test-all: setup  ## every test; real-data tests need KDML_MED_DATA=<folder>
	HYPOTHESIS_PROFILE=random $(PYTEST)

wheel-test: setup  ## a wheel, installed elsewhere, does everything from an empty folder
	$(BIN)/python -m tests.wheel

lint: setup  ## format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup  ## mypy, strict
	$(BIN)/mypy

bench: setup  ## tiling speed against the codec's floor, an OpenSlide loop and other libraries (about 12 minutes)
	-$(MAKE) --no-print-directory $(PEERS)/.installed # without them, their rows say so
	$(BIN)/python -m tests.benchmarks.bench_tiling --peers $(PEERS)/bin/python

# Other libraries, in an environment of their own: they ask for other releases than this project. Everything is pinned
# and nothing else is resolved, so that no CUDA libraries come along.
$(PEERS)/.installed: tests/benchmarks/peers.txt constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt torch
	$(PEERS)/bin/python -m pip install --quiet --no-deps -r tests/benchmarks/peers.txt
	touch $@

bench-training: setup  ## training speed against the networks alone, a naive loop and other libraries (about 16 minutes)
	-$(MAKE) --no-print-directory $(TRAINING_PEERS)/.installed # without them, their columns say so
	$(BIN)/python -m tests.benchmarks.bench_training --peers $(TRAINING_PEERS)/bin/python

$(TRAINING_PEERS)/.installed: tests/benchmarks/peers_training.txt constraints.txt
	test -x $(TRAINING_PEERS)/bin/python || $(PYTHON) -m venv $(TRAINING_PEERS)
	$(TRAINING_PEERS)/bin/python -m pip install --quiet -c constraints.txt torch
	$(TRAINING_PEERS)/bin/python -m pip install --quiet --no-deps -c constraints.txt -r tests/benchmarks/peers_training.txt
	touch $@

docs: setup  ## the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # the notice is answered by docs/decisions/0027

settings-page: setup  ## the tables of settings in docs/ and in the bundles, from the list of settings
	$(BIN)/python -c "import sys; from kdml_med.bundle.help import write_pages; write_pages(sys.argv[1:])" \
		docs/reference/settings.md bundles/*/docs/README.md

check: lint types test  ## what has to pass before a change lands

clean:  ## remove what the targets made, except .venv
	rm -rf $(DEMO) site build dist *.egg-info
