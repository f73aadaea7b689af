# Only Python >= 3.10 is needed: `make run`, `make test` and the others call `make setup` themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SAMPLES ?= samples
OUT    ?= samples-captions
# Files are handed out in the order of tests/conftest.py, not by their number of tests.
PYTEST := $(BIN)/python -m pytest -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder
# Files of tests lie in memory where it has room for them: Nightcap waits for the disk after each file, a tenth of the time.
SHM_GB := $(shell df -BG --output=avail /dev/shm 2>/dev/null | tail -1 | tr -dc 0-9)
test test-fast coverage: export PYTEST_DEBUG_TEMPROOT = $(if $(filter-out 0 1 2 3 4 5 6 7,$(SHM_GB)),/dev/shm)

.PHONY: help setup run test test-fast coverage format lint type check bench faults docs lock clean
help:            ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## create .venv and install everything into it
$(STAMP): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("nightcap needs Python 3.10 or newer; this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@$(BIN)/python -m compileall -q conf model pipeline pages jobs
	@touch $@

run: $(STAMP)    ## caption ten sample photos with the shipped bundle and show the table; ENGINE=ray uses Ray
	@$(BIN)/python -m jobs.samples copy $(SAMPLES)
	@$(BIN)/nightcap run $(SAMPLES) --output $(OUT) --engine $(or $(ENGINE),auto)
	@$(BIN)/python -m jobs.samples show $(OUT)

test: $(STAMP)   ## the whole test suite, JOBS=2 files at a time
	@$(PYTEST)

test-fast: $(STAMP)  ## all tests except those marked ray, train or slow
	@$(PYTEST) -m "not ray and not train and not slow"

coverage: $(STAMP)   ## the whole test suite, with the lines that no test executes
	@$(PYTEST) --cov --cov-report=term-missing:skip-covered

format: $(STAMP) ## format the code
	@$(BIN)/ruff check --select I --fix --quiet .
	@$(BIN)/ruff format .

lint: $(STAMP)   ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

type: $(STAMP)   ## mypy --strict
	@$(BIN)/mypy

check: lint type test  ## what .ci/run does

bench: $(STAMP)  ## measure speed and memory; PHOTOS=folder uses your photos, SECTIONS="peers start" measures a part
	@test -d $(VENV)/daft || $(BIN)/uv pip install --quiet --target $(VENV)/daft "daft>=0.5" || true
	@$(BIN)/python -m bench $(SECTIONS) $(if $(PHOTOS),--photos $(PHOTOS))

docs: $(STAMP)   ## make the pictures of the README again, with Chromium
	@$(BIN)/python docs/pictures/make.py

faults: $(STAMP) ## kill the job and disturb its S3 at random moments, on both engines; TRIALS=40 SEED=0
	@for engine in local ray; do \
		$(BIN)/python -m faults --engine $$engine --trials $(or $(TRIALS),40) --seed $(or $(SEED),0) \
			$(if $(PHOTOS),--photos $(PHOTOS)) || exit 1; \
	done

lock: $(STAMP)   ## pin all dependencies in requirements.txt again
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-emit-index-url --no-header \
		--no-annotate pyproject.toml --output-file requirements.txt

clean:           ## remove .venv, the sample photos and their captions
	rm -rf $(VENV) $(SAMPLES) $(OUT)
