# Squeezeflow. `make help` lists every target; each does one thing from a clean machine.
SHELL := /bin/bash
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
EXTRAS := orchestrator converter quantizer pruner inference dev
PROTOS := $(wildcard protos/squeezeflow/*/*.proto)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

.PHONY: setup
setup: .venv/.installed services/squeezeflow/.stubs ## .venv with everything; .venv/bin/squeezeflow is the command line

.venv/.uv:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed; set PYTHON="'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	touch $@

.venv/.protoc: .venv/.uv requirements/protoc.txt
	$(PYTHON) -m venv .venv/protoc
	$(BIN)/uv pip install --quiet --python .venv/protoc/bin/python --require-hashes -r requirements/protoc.txt
	touch $@

.venv/.locked: .venv/.uv requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	touch $@

.venv/.installed: .venv/.locked pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# The stub compiler has an environment of its own: its protobuf 6 code loads beside protobuf 6 and 7 clients.
services/squeezeflow/.stubs: $(PROTOS) .venv/.protoc .venv/.locked protos/generate.py
	$(BIN)/python protos/generate.py --compiler .venv/protoc/bin/python
	touch $@

.PHONY: lock
lock: .venv/.uv ## write the requirement locks again (hashes, no index address)
	for extra in $(EXTRAS); do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    --extra $$extra pyproject.toml --output-file requirements/$$extra.txt || exit 1; done
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  pyproject.toml --output-file requirements/client.txt
	echo 'grpcio-tools==1.76.*' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  - --output-file requirements/protoc.txt
