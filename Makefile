# `make demo` and `make test` do all the set-up: nothing else is needed than Python 3.11 or 3.12 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
ENV := .venv
BIN := $(ENV)/bin

.PHONY: demo test test-containers bench bench-page bench-startup bench-profile bench-loop bench-check bench-train bench-serve bench-flows bench-rollout bench-drift lock clean

demo: $(ENV)/installed  ## Replay a real year through the whole loop; ARGS="--until 2013-05-01" for a short one.
	@$(BIN)/perennial demo $(ARGS)

test: $(ENV)/installed  ## Style, then every test that needs no docker; ARGS="-k ledger" for a few.
	@$(BIN)/ruff check .
	@$(BIN)/python -m pytest -m "not containers" -n 2 --dist loadfile $(ARGS)

test-containers: $(ENV)/installed  ## The tests of images, containers and the compose stack; needs docker, docker-compose and a registry at 127.0.0.1:5000.
	@$(BIN)/python -m pytest -m containers --timeout 1800 $(ARGS)

$(ENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "Perennial needs Python 3.11 or 3.12, this is %s; run: make PYTHON=python3.12" % sys.version.split()[0])'
	@echo "installing into $(ENV) (once, about two minutes) ..."
	@$(PYTHON) -m venv --clear $(ENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

bench: $(ENV)/installed  ## Every figure, beside what else one might pick, and build/bench/index.html; a quarter of an hour; ARGS="flows loop" for some. Needs wrk.
	@$(BIN)/python -m tests.bench $(ARGS)

bench-page: $(ENV)/installed  ## Draw build/bench/index.html anew from the figures that are there.
	@$(BIN)/python -m tests.bench.page

bench-startup: $(ENV)/installed  ## How long commands take to start.
	@$(BIN)/python -m tests.bench.startup

bench-profile: $(ENV)/installed  ## Profiles of 1,000,000 flights, beside whylogs' own.
	@$(BIN)/python -m tests.bench.profile

bench-loop: $(ENV)/installed  ## From a drift event to the new version on all replicas, by the real stack. About 3 minutes.
	@$(BIN)/python -m tests.bench.loop $(ARGS)

bench-check: $(ENV)/installed  ## The contract check and the features of 1,000,000 flights.
	@$(BIN)/python -m tests.bench.check

bench-train: $(ENV)/installed  ## Training beside bare XGBoost, and memory as the rows grow to 10 million; ARGS=--long to 30 million.
	@$(BIN)/python -m tests.bench.train $(ARGS)

bench-serve: $(ENV)/installed  ## Requests of all sizes on one core, everything on, beside peers; ARGS=--long for minutes under load. Needs wrk.
	@$(BIN)/python -m tests.bench.serve $(ARGS)

bench-flows: $(ENV)/installed  ## What the flows add to the plain functions, on the year.
	@$(BIN)/python -m tests.bench.flows

bench-rollout: $(ENV)/installed  ## Releases, rollbacks, kills and bad challengers under load; needs docker and a registry. About 50 minutes.
	@$(BIN)/python -m tests.bench.rollout $(ARGS)

bench-drift: $(ENV)/installed  ## False alarms and power of drift verdicts by the size of a window, and what judging costs. About 4 minutes.
	@$(BIN)/python -m tests.bench.drift $(ARGS)

lock: $(ENV)/installed  ## Choose versions anew within pyproject.toml and write both lock files.
	@$(BIN)/python deployments/lock.py

clean:  ## Forget everything that was installed, stored and built.
	rm -rf $(ENV) .perennial build *.egg-info
