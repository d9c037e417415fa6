# Plain `make` lists the targets. Every target that needs Python packages makes the virtual
# environment first, from the locked versions in requirements.lock and requirements-dev.lock.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PYTEST  = $(PY) -m pytest --database $(DATABASE)
ARGS   ?=
SCENARIO ?= all
JOBS   ?= 4
DATABASE ?= embedded

.DEFAULT_GOAL := help
.PHONY: help run test fuzz fault audit lint format bench docs peers lock pin screenshots clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 18

run: $(VENV)/run.stamp  ## start the server in the foreground (ARGS="--workers 4 --port 6632")
	$(PY) cluster.py $(ARGS)

# Twice, as half of a test's time is waiting and some measure it: first all that may run beside
# others, in JOBS processes, then the others alone. 5 is pytest's "no test was chosen", which one of
# the two may say; 1 is "some failed", after which the second is still worth its time.
# Bytecode is kept, whatever the shell says: a hundred servers are started.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/dev.stamp  ## run the whole test suite (ARGS="-k dedupe", DATABASE=pg15 or pgbouncer)
	@$(PYTEST) --part together -n $(JOBS) --dist worksteal $(ARGS); together=$$?; \
	case $$together in 0|1|5) ;; *) exit $$together;; esac; \
	$(PYTEST) --part alone $(ARGS); alone=$$?; \
	case $$together-$$alone in *-5|1-*) exit $$together;; *) exit $$alone;; esac

fuzz: $(VENV)/dev.stamp  ## send what nobody thought of: ten minutes of requests, and bytes to the decoders (ARGS="--fuzz-seconds 60 --fuzz-seed 1")
	$(PY) -m pytest tests/fuzz -s --fuzz-seconds 300 --fuzz-examples 3000 $(ARGS)

fault: $(VENV)/dev.stamp  ## break things under load and check every promise (45 minutes; ARGS="--faults mixed --operations 1 --seed 1")
	$(PY) -m tests.fault $(ARGS)

screenshots: $(VENV)/dev.stamp  ## take the pictures of the dashboard in docs/images (needs chromium)
	$(PY) -m tests.browser.screenshots

lint: $(VENV)/dev.stamp  ## ruff, strict mypy, and which package may import which
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

# Without --strict a version that the service did not answer for counts as one without a fault.
audit: $(VENV)/dev.stamp  ## look the locked versions up among known vulnerabilities
	@told=$$($(PY) -m pip_audit --strict --disable-pip --progress-spinner off -r requirements.lock $(ARGS) 2>&1) \
	    && { echo "$$told"; exit 0; }; \
	case "$$told" in *"could not be audited"*|*ConnectionError*|*Timeout*|*HTTPError*) \
	    echo "NOT AUDITED: the vulnerability service cannot be reached, or did not answer. The last it said:"; \
	    echo "$$told" | tail -n 1;; \
	*) echo "$$told";; esac; exit 1

format: $(VENV)/dev.stamp  ## let ruff format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/dev.stamp  ## measure servers of its own (SCENARIO=canonical ARGS="--size quick --runs 1")
	$(PY) -m bench --scenario $(SCENARIO) $(ARGS)

docs: $(VENV)/docs.stamp  ## build the documentation into build/docs; a warning is an error
	$(PY) -m sphinx --builder html --fail-on-warning --keep-going --fresh-env --quiet docs build/docs

peers: $(VENV)/dev.stamp requirements-peers.lock  ## install what other brokers need to be measured (see bench/README.md)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-peers.lock
	if command -v npm; then npm ci --no-audit --no-fund --prefix bench/peers/pgboss; fi

lock: $(VENV)/dev.stamp  ## resolve the versions anew and write the lock files
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(VENV)/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header pyproject.toml -o requirements.lock
	$(VENV)/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	$(VENV)/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --extra otel -c requirements-dev.lock pyproject.toml -o requirements-otel.lock
	$(VENV)/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --extra docs -c requirements-dev.lock pyproject.toml -o requirements-docs.lock
	$(VENV)/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --extra peers -c requirements-dev.lock pyproject.toml -o requirements-peers.lock

# A tag is whatever its owner makes of it today; a digest stays what was tried.
pin:  ## write the digests that the images of deploy/ have today into its files (needs docker and its registry)
	@for image in python:3.11-slim postgres:18; do \
	    digest=$$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' $$image) || exit 1; \
	    case $$digest in sha256:*) ;; *) echo "no digest of $$image: $$digest"; exit 1;; esac; \
	    sed -i -E "s#\b$$image(@sha256:[0-9a-f]+)?#$$image@$$digest#" deploy/Containerfile deploy/compose.yaml; \
	    echo "$$image@$$digest"; \
	done

clean:  ## remove the virtual environment and caches (never ./data)
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.lock | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

$(VENV)/dev.stamp: requirements-dev.lock | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

$(VENV)/docs.stamp: requirements-docs.lock | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.lock
	touch $@
