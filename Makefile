# `make demo` and `make test` do their own set-up; they need Python 3.11 or 3.12 and make. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
ENV := .venv
BIN := $(ENV)/bin
ROOMS := contracts service registry deployments flows

.PHONY: help demo test lint types test-containers lock clean bench bench-page bench-startup bench-profile bench-loop \
	bench-check bench-train bench-monitor bench-serve bench-flows bench-rollout bench-drift bench-sources bench-outage \
	bench-ledger bench-decay

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' Makefile

demo: $(ENV)/installed  ## Replay a real year through the whole loop; ARGS="--until 2013-04-01" for a short one, ARGS=--year for all of it.
	@$(BIN)/perennial demo $(ARGS)

test: lint types  ## Lint, types, then all tests that need no docker, with their coverage; ARGS="-k ledger" for a few tests.
	@$(BIN)/python -m pytest -m "not containers" -n 2 --dist loadfile $(or $(ARGS),$(EVERYTHING))
	@$(if $(ARGS),,$(COVERAGE))

# The doctests of the rooms too; importing service/bento.py is only possible inside a bento.
EVERYTHING := tests $(ROOMS) --doctest-modules --ignore service/bento.py --ignore tests/bench --cov --cov-report=
COVERAGE := echo "covered, files under 90 %:"; $(BIN)/coverage report --sort cover | awk '$$NF + 0 < 90 || /^TOTAL/'

lint: $(ENV)/installed  ## Check style with ruff.
	@$(BIN)/ruff check .

types: $(ENV)/installed  ## Check types with mypy.
	@$(BIN)/mypy $(ROOMS)

test-containers: $(ENV)/installed  ## The tests of images, containers and compose; `.ci/container-engine up` provides what they need.
	@$(BIN)/python -m pytest -m containers --timeout 1800 $(ARGS)

$(ENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "Perennial needs Python 3.11 or 3.12, this is %s; run: make PYTHON=python3.12" % sys.version.split()[0])'
	@echo "installing into $(ENV) (once, about two minutes) ..."
	@$(PYTHON) -m venv --clear $(ENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lock: $(ENV)/installed  ## Update the lock files from pyproject.toml.
	@$(BIN)/python deployments/lock.py

clean:  ## Delete everything that was installed, stored and built.
	rm -rf $(ENV) .perennial build .coverage *.egg-info

bench: $(ENV)/installed  ## All benchmarks, beside alternatives, and build/bench/index.html; ARGS="flows loop" for some. Needs wrk.
	@$(BIN)/python -m tests.bench $(ARGS)

bench-page: $(ENV)/installed  ## Draw build/bench/index.html again, from the results in build/bench.
	@$(BIN)/python -m tests.bench.page

bench-startup: $(ENV)/installed  ## How long commands take to start.
	@$(BIN)/python -m tests.bench.startup

bench-profile: $(ENV)/installed  ## Profiles of 1,000,000 flights, beside whylogs' own.
	@$(BIN)/python -m tests.bench.profile

bench-loop: $(ENV)/installed  ## From a drifted window's end to the new version on all replicas, on a real stack. About 5 minutes.
	@$(BIN)/python -m tests.bench.loop $(ARGS)

bench-check: $(ENV)/installed  ## The contract's check and the features of 1,000,000 flights.
	@$(BIN)/python -m tests.bench.check

bench-train: $(ENV)/installed  ## Training beside plain XGBoost, and memory up to 10 million rows; ARGS=--long to 30 million.
	@$(BIN)/python -m tests.bench.train $(ARGS)

bench-monitor: $(ENV)/installed  ## Judging windows of up to 16 million predictions; ARGS="--rows 60000000" for one more, of which it needs 20 GB of disk.
	@$(BIN)/python -m tests.bench.monitor $(ARGS)

bench-serve: $(ENV)/installed  ## Requests of all sizes on one core, beside alternatives; ARGS=--long for minutes under load. Needs wrk.
	@$(BIN)/python -m tests.bench.serve $(ARGS)

bench-flows: $(ENV)/installed  ## What the flows add to the plain functions, on a year of flights.
	@$(BIN)/python -m tests.bench.flows

bench-rollout: $(ENV)/installed  ## Releases, rollbacks, kills and bad challengers under load; needs docker and a registry. About 50 minutes.
	@$(BIN)/python -m tests.bench.rollout $(ARGS)

bench-sources: $(ENV)/installed  ## Ten million rows from each kind of source, and the memory that takes. About 8 minutes.
	@$(BIN)/python -m tests.bench.sources

bench-outage: $(ENV)/installed  ## Two models through a broken source, killed workers and a restarted server; ARGS="--store s3". About 25 minutes.
	@$(BIN)/python -m tests.bench.outage $(ARGS)

bench-drift: $(ENV)/installed  ## False alarms and power of drift verdicts by window size, and their cost, then of checks on labels. About 15 minutes.
	@$(BIN)/python -m tests.bench.drift $(ARGS)
	@$(BIN)/python -m tests.bench.decay $(if $(findstring --quick,$(ARGS)),--quick)

bench-decay: $(ENV)/installed  ## False alarms and power of the checks on labels, by the number of labels; ARGS=--quick for a tenth.
	@$(BIN)/python -m tests.bench.decay $(ARGS)

bench-ledger: $(ENV)/installed  ## Appending to a ledger of 100,000 events, its cold start, its requests on S3. About 4 minutes.
	@$(BIN)/python -m tests.bench.ledger $(ARGS)
