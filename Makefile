# `make demo` and `make test` need only python3 and make: each creates .venv, installs what it uses, and runs.
# What is installed is remembered by the stamps .venv/.with-*, which pyproject.toml and constraints.txt make stale.

PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python -m

.PHONY: help demo test slow laws lint format types contracts notebooks wheel-check check constraints clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.with-core  ## posteriors over the decodings of a language model, in a minute
	@$(RUN) posterity demo

test: $(VENV)/.with-test  ## every test but those marked slow
	$(RUN) pytest --numprocesses=2 --dist=worksteal -m 'not slow' $(ARGS)

slow: $(VENV)/.with-test  ## the tests marked slow: larger proofs, and runs at full size
	$(RUN) pytest --numprocesses=2 --dist=worksteal -m slow $(ARGS)

laws: $(VENV)/.with-test  ## the proofs by exact enumeration, as a table: block, law, programs tried, largest error
	$(RUN) pytest --numprocesses=2 --dist=worksteal --quiet tests/exact $(ARGS)

lint: $(VENV)/.with-test  ## style and format, by ruff
	$(RUN) ruff check .
	$(RUN) ruff format --check .

format: $(VENV)/.with-test  ## what lint asks for, done
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

types: $(VENV)/.with-test  ## types, by pyright
	@mkdir -p build/types && ln -sfn ../.. build/types/posterity
	$(RUN) pyright

contracts: $(VENV)/.with-test  ## who may import whom, by import-linter
	$(VENV)/bin/lint-imports --no-cache

notebooks: $(VENV)/.with-notebooks  ## run every notebook
	$(VENV)/bin/jupyter execute notebooks/*.ipynb

wheel-check: $(VENV)/.with-core  ## build the wheel, look into it, install it afresh, import all of it
	$(VENV)/bin/python .ci/check_wheel.py

check:  ## all of the above, as the continuous integration does
	bash .ci/run

PYTHONS ?= python3.11 python3.12 python3.13
constraints:  ## pin today's versions of every dependency for all of PYTHONS
	$(PYTHON) .ci/constraints.py $(PYTHONS)

clean:  ## remove all that was made here, .venv too
	rm -rf $(VENV) .cache .*_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Posterity needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) could not create $(VENV); on Debian and Ubuntu, install python3-venv first."; exit 1; }

# Every set of extras contains the core, so each stamp also stands for it.
$(VENV)/.with-%: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing posterity ($*) into $(VENV): about a minute, once."
	@$(RUN) pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.$(patsubst [core],,[$*])'
	@touch $@ $(VENV)/.with-core
