# Every target does all of its own set-up; repeated, it is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

PRESET ?= cpu

.PHONY: demo serve test check fuzz audit bench docs reproduce timings weights clean

demo: $(VENV)/.core  ## The main job on the embedded default.
	$(BIN)/uturn demo

serve: $(VENV)/.web  ## The explorer, in a browser.
	$(BIN)/uturn serve

test: $(VENV)/.dev  ## The test suite; what this machine lacks is skipped with a reason.
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile

check: $(VENV)/.dev  ## Format, lint, types.
	$(BIN)/ruff format --check src tests fuzz benchmarks notebooks docs/scripts
	$(BIN)/ruff check src tests fuzz benchmarks notebooks docs/scripts
	$(BIN)/mypy

EXECUTIONS ?= 20000

fuzz: $(VENV)/.fuzz  ## Every parser of foreign input; EXECUTIONS of each, 5 minutes at the most.
	$(BIN)/python -m fuzz --executions $(EXECUTIONS)

audit: $(VENV)/.audit  ## Known holes in the pinned versions (asks PyPI), and the list of licences.
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip
	$(BIN)/python docs/scripts/licences.py
	git diff --exit-code docs/licences.md

bench: $(VENV)/.bench  ## Ours, each peer and the limit, as ratios in one run.
	$(BIN)/python -m benchmarks

docs: $(VENV)/.docs  ## The documentation as a site, in site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo site/index.html

reproduce: $(VENV)/.train  ## Every experiment of the paper; PRESET=cpu, gpu or paper.
	$(BIN)/uturn reproduce all --preset $(PRESET)

# Not onto the shipped file, which uturn train would take for somebody else's, or for finished.
timings: $(VENV)/.train  ## Keep how long the steps of `make reproduce` took, for others' plans.
	$(BIN)/python -c "from uturn.reproduce.run import keep_all_times as keep; keep('$(PRESET)')"

weights: $(VENV)/.core  ## Train the shipped glyph weights anew (5 minutes on 2 cores).
	$(BIN)/uturn train --data glyphs --arch glyph_net --augment shift,recolour --device cpu \
		--out $(VENV)/glyph_net.safetensors
	mv $(VENV)/glyph_net.safetensors src/uturn/victims/weights/glyph_net.safetensors

clean:
	rm -rf $(VENV) uturn-demo site .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/.train: $(VENV)/.core
	$(PIP) --editable ".[train]"
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable ".[dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) --editable ".[docs]"
	@touch $@

$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) --editable ".[fuzz]"
	@touch $@

$(VENV)/.audit: $(VENV)/.dev
	$(PIP) --editable ".[audit]"
	@touch $@

$(VENV)/.web: $(VENV)/.core
	$(PIP) --editable ".[web]"
	@touch $@

# torchattacks asks for a requests that the rest cannot live with, and works with any.
$(VENV)/.bench: $(VENV)/.core
	$(PIP) --editable ".[bench]"
	$(PIP) --no-deps torchattacks
	@touch $@
