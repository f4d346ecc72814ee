# make demo    distill a small student from real teachers, reopen it and show what it learned (runs/demo/)
# make test    lint, format, types and the test suite
# make tour    whole journeys as tests: the site, the guides' examples, pages and app in a browser, notebooks, scripts, several processes (Debian's `chromium` is installed where root may)
# make audit   known vulnerabilities of what is installed, where PyPI's list of them can be asked; in no other target
# make docs    the documentation site, strictly (site/); `make docs-live` serves it and follows changes
# All build .venv on first use; `make demo PYTHON=python3.12` picks another interpreter for it.
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip

# Two threads that spin while they wait slow each other down many times when anything else runs; those that never spin
# lose a tenth of the demo's steps to waking up. 3,000 turns of GNU's OpenMP are the shortest wait that wins it back.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 3000
export NO_MKDOCS_2_WARNING ?= 1

.PHONY: demo test tour types lint audit format docs docs-live clean
.DEFAULT_GOAL := demo

demo: $(VENV)/installed-train
	$(BIN)/radio demo

# One process a core, four at most, each with one thread (three on two cores were no faster). A file's tests stay
# together, since they share what they train. Bytecode is written even where a container's environment says otherwise:
# each process, and each that it starts, would compile all modules and tests again.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

test: lint
	$(PYTEST) -m "not slow and not gpu and not hub and not tour"

tour: $(VENV)/installed-dev
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || [ "$$(id -u)" != 0 ] \
		|| ! command -v apt-get >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }
	$(PYTEST) -m "tour and not gpu and not hub"

# The package as it is installed, made of links: type checkers do not follow `modeling_radio.__path__` of a clone.
types:
	rm -rf build/types && mkdir -p build/types/modeling_radio && cd build/types/modeling_radio && \
		ln -s ../../../modeling_radio/* ../../../core ../../../training ../../../conversion ../../../model_cards .

lint: $(VENV)/installed-dev types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# A package that the list lacks would be skipped in silence, hence the question first and `--strict`.
audit: $(VENV)/installed-dev
	@$(BIN)/python -c "import urllib.request as web; web.urlopen('https://pypi.org/pypi/pip/25.0/json', timeout=20)" 2>/dev/null \
		|| { echo "Nothing was audited: PyPI's list of vulnerabilities cannot be reached from here."; exit 1; }
	$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | sed 's/+.*//' > $(VENV)/installed.txt
	$(BIN)/uvx pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement $(VENV)/installed.txt

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

docs-live: $(VENV)/installed-docs
	$(BIN)/mkdocs serve

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) site build dist *.egg-info .pytest_cache .ruff_cache

# A half-made environment (interrupted, or without ensurepip) has no working pip: it is made again.
$(BIN)/pip:
	$(PYTHON) -m venv --clear $(VENV)

# uv installs in a third of pip's time, but does not read pip's settings, which some machines need: they are handed on.
setting = $$($(PIP) config list | sed -n "s/^[^.]*\.$(1)='\(.*\)'$$/\1/p" | tail -n 1)
INSTALL = $(PIP) install --quiet "uv>=0.9,<1" && \
	UV_DEFAULT_INDEX="$(call setting,index-url)" UV_INDEX="$(call setting,extra-index-url)" \
	UV_FIND_LINKS="$(call setting,find-links)" UV_CONSTRAINT="$(call setting,constraint)" \
	$(BIN)/uv pip install --python $(BIN)/python --editable

$(VENV)/installed-train: pyproject.toml | $(BIN)/pip
	$(INSTALL) ".[train]"
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/pip
	$(INSTALL) ".[tasks,evaluate,extract,video,export,int8,serve,app,notebooks,docs,dev]"
	touch $@ $(VENV)/installed-train $(VENV)/installed-docs

$(VENV)/installed-docs: pyproject.toml | $(BIN)/pip
	$(INSTALL) ".[docs]"
	touch $@
