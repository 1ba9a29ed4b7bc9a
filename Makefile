# `make up` on a bare machine installs what it needs and serves the bundled model.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
REFERENCE := tests/reference-packages.txt
PROTO_SOURCES := $(shell find protos -name '*.proto' | sort)
ARGS ?=

.PHONY: help install up test check format protos percept-tiny eval-tiny bench-memory bench bench-peers bench-gpu gpu-wheels docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## Make .venv with everything

$(STAMP): pyproject.toml $(REFERENCE)
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one (Debian: apt-get install python3.11 python3.11-venv), or name it: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment. Debian: apt-get install $(notdir $(PYTHON))-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --progress-bar on -e '.[dev]'
	$(BIN)/python -m pip install --progress-bar on --no-deps --upgrade --target .venv/reference -r $(REFERENCE)
	@touch $@
	@echo "Installed. Start with: make up"

up: $(STAMP) ## Serve the bundled model on http://127.0.0.1:8000 (more flags: make up ARGS='--port 9000')
	@exec $(BIN)/percept up $(ARGS)

test: check ## Run every check and every test (some tests: make test ARGS='tests/unit -x')
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## Lint, format, types, the floors of the architecture, drift of generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/contract/test_protos.py

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(STAMP) ## Generate the gRPC code again
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. \
		--mypy_out=. --mypy_grpc_out=. \
		--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc $(PROTO_SOURCES)
	@rm -f $(patsubst %.proto,%_pb2_grpc.py,$(shell grep -L '^service' $(PROTO_SOURCES))) \
		$(patsubst %.proto,%_pb2_grpc.pyi,$(shell grep -L '^service' $(PROTO_SOURCES)))

percept-tiny: $(STAMP) ## Train the bundled model again (five hours on 2 cores; resumes; needs espeak-ng; ARGS of models.polish)
	$(BIN)/python -m models.training
	$(BIN)/python -m models.senses
	$(BIN)/python -m models.polish $(ARGS)

eval-tiny: $(STAMP) ## Measure the bundled model's accuracy through the gateway
	$(BIN)/python -m benchmarks.eval_tiny $(ARGS)

bench-memory: $(STAMP) ## Measure the resident memory of encoder and LLM apart
	$(BIN)/python -m benchmarks.memory $(ARGS)

bench: $(STAMP) ## Measure Percept beside its peers on this machine (a short run: make bench ARGS=--quick)
	@exec $(BIN)/python -m benchmarks.suite $(ARGS)

bench-peers: $(STAMP) ## Install the peers that `make bench` compares with, each in its own environment
	$(BIN)/python -m benchmarks.peers.install $(ARGS)

bench-gpu: ## Test and measure on a CUDA GPU, ten minutes (ARGS='--smoke' runs tiny sizes on the CPU)
	$(if $(wildcard $(BIN)/python),$(BIN)/python,python3) -m benchmarks.gpu $(ARGS)

gpu-wheels: ## Fetch what a GPU machine without network lacks beside torch and transformers
	$(BIN)/python -m pip download --dest .gpu-wheels --only-binary=:all: --python-version 3.12 \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
		-r benchmarks/gpu/wheels.txt

docs: $(STAMP) ## Write docs/configuration.md and the README's table of models from the code again
	$(BIN)/python -m percept.configuration_page docs/configuration.md
	$(BIN)/python -m percept.models_table README.md

clean: ## Remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
