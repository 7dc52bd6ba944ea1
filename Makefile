# Squeezeflow. `make help` lists every target; each does one thing from a clean machine.
SHELL := /bin/bash
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
EXTRAS := orchestrator converter quantizer pruner inference dev
PROTOS := $(wildcard protos/squeezeflow/*/*.proto)
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	--constraint requirements/constraints.in

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-17s %s\n", $$1, $$2}'

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
	for extra in $(EXTRAS); do $(COMPILE) --extra $$extra pyproject.toml --output-file requirements/$$extra.txt || exit 1; done
	$(COMPILE) pyproject.toml --output-file requirements/client.txt
	echo 'grpcio-tools==1.76.*' | $(COMPILE) - --output-file requirements/protoc.txt

.PHONY: lint
lint: setup ## ruff, mypy strict, buf, direction of imports
	$(BIN)/ruff check services tests protos
	$(BIN)/ruff format --check services tests protos
	$(BIN)/mypy services/squeezeflow/core services/squeezeflow/rpc services/squeezeflow/orchestrator
	$(BIN)/python tests/lint/imports.py
	mkdir -p build
	$(BIN)/python protos/generate.py --compiler .venv/protoc/bin/python --image build/protos.binpb
	$(BIN)/buf lint build/protos.binpb --config buf.yaml

.PHONY: test
test: setup ## every test: unit, integration (real S3, gRPC, processes), end to end
	$(BIN)/python -m pytest

.PHONY: demo
demo: setup ## train, compress, measure and serve a real model on this machine; STORE=s3 through a real S3 server
	$(BIN)/python tests/demo/demo.py $(if $(STORE),--store $(STORE))

.PHONY: bench
bench: setup ## performance as ratios in one run
	$(BIN)/python tests/bench/run.py

.PHONY: bench-techniques
bench-techniques: setup ## every technique and recipe over three seeds on real data; README=1 puts the tables into the README
	$(BIN)/python tests/bench/techniques/run.py $(if $(README),--readme)

.PHONY: wheel
wheel: setup ## the wheel that the images install
	rm -rf dist
	$(BIN)/python -m hatchling build -t wheel -d dist

.PHONY: images
images: wheel ## container images of all services; ENGINE=podman, PYTHON_IMAGE=… for another base
	for service in $(filter-out dev,$(EXTRAS)); do \
	  $(or $(ENGINE),docker) build $(if $(PYTHON_IMAGE),--build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)) \
	    -f deploy/images/$$service.Dockerfile -t squeezeflow/$$service:dev . || exit 1; done
