# What one does here: `make demo`, `make test`, `make check`, `make bench`. Each sets up what it
# needs, in a virtual environment of its own; nothing outside of this directory is changed.

VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
RUN := $(VENV)/bin/python
BENCHMARKS := $(filter-out benchmarks/common.py,$(wildcard benchmarks/*.py))

.PHONY: demo test check bench format clean

demo: $(VENV)/demo  ## run a program of functions and executables over Python's own library
	$(RUN) examples/library_census.py --output demo-output

test: $(VENV)/check  ## run the tests, two files at a time
	$(RUN) -m pytest -n 2 --dist loadfile

check: $(VENV)/check  ## ruff, mypy, the walls between the packages
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest -q tests/project/test_layering.py

bench: $(VENV)/check  ## time daskbatch against raw Dask and process pools
	@missed=; for each in $(BENCHMARKS); do \
		$(RUN) $$each || missed="$$missed $$each"; \
	done; \
	test -z "$$missed" || { echo "missed:$$missed"; exit 1; }

format: $(VENV)/check
	$(RUN) -m ruff check --fix-only .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The file named after a set of extras says that they are installed, as pyproject.toml has them.
$(VENV)/demo: extras = dashboard
$(VENV)/check: extras = check
$(VENV)/demo $(VENV)/check: pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "daskbatch needs Python 3.11 or newer, and finds none on the PATH:" \
			"install one, or name it as in  make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[$(extras)]"
	@touch $@
