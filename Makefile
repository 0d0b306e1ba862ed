PYTHON ?= python3
BIN := .venv/bin
# The operations of small towers are short: on several threads they would mostly wait for each other.
demo test: export OMP_NUM_THREADS = 1

.PHONY: setup format check test demo

setup: .venv/.ready

# Everything but torch is checked against the hashes of requirements.lock, and no package is built from source.
.venv/.ready: pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	touch .venv/.ready

format: setup
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

check: setup
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/basedpyright

# `make test COVERAGE=1` also prints the share of lines that the tests run, and the modules below it.
test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -q $(if $(COVERAGE),--cov --cov-report=term:skip-covered)

demo: setup
	$(BIN)/cleft data phantoms demo/phantoms --patients 400
	$(BIN)/cleft pretrain demo --data.root demo/phantoms --data.cache demo/cache --run demo/stage-one
	$(BIN)/cleft learn-context demo/stage-one --out demo/stage-two
	$(BIN)/cleft evaluate demo/stage-one
	$(BIN)/cleft evaluate demo/stage-two
	$(BIN)/cleft report demo/stage-one demo/stage-two --out demo/report.html
	@echo "The page is here: file://$(CURDIR)/demo/report.html"
