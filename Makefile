# make figures and make test do all the set-up themselves; a second run reuses what is there.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup data figures test bench readme nb-clean clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): settings.ini constraints.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

setup: $(READY) ## Python packages in .venv

data: $(READY) ## MovieLens-100K and the text vectors, verified, in the cache folder
	$(BIN)/llmers data --embed

figures: data ## execute every notebook, write every figure to build/figures
	$(BIN)/llmers figures

test: data ## all tests; they use no network
	$(BIN)/python -m pytest

bench: data ## compute the comparisons in data/results again (hours); an interrupted run goes on
	$(BIN)/llmers bench

readme: data ## README.md from nbs/index.ipynb
	$(BIN)/python .ci/readme.py

nb-clean: $(READY) ## remove outputs and stray metadata from the notebooks, export the library
	$(BIN)/python .ci/readme.py --clean && $(BIN)/nbdev_export

clean: ## remove what was built; keeps .venv and the cache
	rm -rf build dist _proc _docs *.egg-info .pytest_cache
