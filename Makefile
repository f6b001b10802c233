# The commands of this project: `make demo`, `make test`, `make check`, `make docs`, `make bench`, ...
# Each installs what it needs into a virtual environment in this directory, in the versions that
# the files in requirements/ name; nothing outside of this directory is changed.

VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
RUN := $(VENV)/bin/python
BENCHMARKS := $(filter-out benchmarks/common.py benchmarks/data_%,$(wildcard benchmarks/*.py))

# Each test starts processes that would compile the whole library anew.
export PYTHONDONTWRITEBYTECODE =

QUIETLY = --quiet --disable-pip-version-check
# A process that ends in the middle of a test is a fault, and the same test would end the next one.
PYTEST = -m pytest -n 3 --dist loadfile --max-worker-restart 0

.PHONY: demo test test-unit test-latest test-oldest faults check bench compare docs notebooks dist format lock clean

demo: $(VENV)/demo  ## run a program of functions and executables over Python's own library
	$(RUN) examples/library_census.py --output demo-output

test: $(VENV)/check  ## run the tests, three files at a time
	$(RUN) $(PYTEST)

test-unit: $(VENV)/check  ## run the tests that need no cluster and take no longer than a moment
	$(RUN) $(PYTEST) -m "not slow" tests/unit

test-latest:  ## run the tests with the newest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear .venv-latest
	.venv-latest/bin/python -m pip $(QUIETLY) install --upgrade --editable ".[check]"
	.venv-latest/bin/python $(PYTEST)

test-oldest: $(VENV)/check  ## run the tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear .venv-oldest
	$(RUN) -m uv pip install --quiet --python .venv-oldest --resolution lowest-direct \
		--editable ".[check]"
	.venv-oldest/bin/python $(PYTEST)

SEEDS ?= 0-99
RUNS ?= 25

faults: $(VENV)/check  ## run random programs while workers are killed; SEEDS=0-99 RUNS=25
	PYTHONPATH=tests $(RUN) -m faults.engine_harness --seeds $(SEEDS)
	PYTHONPATH=tests $(RUN) -m faults.shared_harness --runs $(RUNS)
	PYTHONPATH=tests $(RUN) -m faults.rank_harness --seeds 0-$(RUNS)

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

COMPARE ?= $(RUN)
REPEATS ?= 5

compare: $(VENV)/check  ## compare with the libraries that the Python COMPARE= has; writes a page
	PYTHONPATH=. $(COMPARE) benchmarks/compare/compare.py --repeats $(REPEATS) --page docs/about/comparison.md

docs: $(VENV)/docs  ## build the documentation site in docs-output; a warning is an error
	$(RUN) -m sphinx -n -W --keep-going -q -c docs . docs-output
	$(RUN) docs/check_links.py docs-output
	@echo "open docs-output/index.html"

notebooks: $(VENV)/check  ## run the notebooks and store their outputs
	cd tests && ../$(RUN) -m support.notebooks

dist: $(VENV)/docs  ## build sdist and wheel in dist, check them, and try the wheel elsewhere
	rm -rf dist build
	$(RUN) -m build --no-isolation --outdir dist . > /dev/null
	$(RUN) -m twine check --strict dist/*
	$(RUN) -m check_wheel_contents dist/*.whl
	$(RUN) tests/package/try_wheel.py dist/*.whl

format: $(VENV)/check
	$(RUN) -m ruff check --fix-only .
	$(RUN) -m ruff format .

lock: $(VENV)/check  ## fit the lock to pyproject.toml; with UPGRADE=--upgrade, to the newest versions
	$(RUN) $(LOCK) --group lock --extra check -o requirements/check.txt
	$(RUN) $(LOCK) --extra dashboard --extra progress -c requirements/check.txt -o requirements/demo.txt
	$(RUN) $(LOCK) --group dist --extra docs -c requirements/check.txt -o requirements/docs.txt

LOCK = -m uv pip compile $(UPGRADE) --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --group build pyproject.toml

clean:
	rm -rf $(VENV) .venv-latest .venv-oldest demo-output docs-output dist build
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The file named after a set of requirements says that they are installed.
$(VENV)/demo $(VENV)/check $(VENV)/docs: $(VENV)/%: requirements/%.txt pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "daskbatch needs Python 3.11 or newer, and finds none on the PATH:" \
			"install one, or name it as in  make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip $(QUIETLY) install --requirement $<
	$(RUN) -m pip $(QUIETLY) install --no-deps --no-build-isolation --editable .
	@touch $@
