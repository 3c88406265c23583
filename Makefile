# From a bare Python >= 3.11 to a trained model (make demo) or to all tests passed (make test).
# Variables: PYTHON=/path/to/python3.12  VENV=.venv  WORKERS=2 (test processes, one thread each)
#            ISA=avx2 (tests with the kernels of processors without AVX-512)  TESTS="tests/models ..." (only these)
# tools/install.py installs PyTorch's CPU build if there is no NVIDIA GPU; TORCH_CPU_INDEX=URL sets a mirror of its index.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all lint format clean

VENV ?= .venv
WORKERS ?= 2
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)

PY := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
INPUTS := pyproject.toml src/vitral/version.py tools/install.py $(wildcard constraints/*.txt)
INSTALL = $(PY) tools/install.py
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# ISA=avx2: kernels of torch, oneDNN and BLAS for a processor with only AVX2.
avx2 := ONEDNN_MAX_CPU_ISA=AVX2 DNNL_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        MKL_CBWR=AVX2 OPENBLAS_CORETYPE=Haswell

# One thread per process: WORKERS processes use WORKERS cores. A text file opened without an encoding is an error.
PYTEST = $(if $(ISA),$($(ISA))) OMP_NUM_THREADS=1 PYTHONWARNDEFAULTENCODING=1 $(PY) -m pytest -n $(WORKERS) --dist loadscope --durations 25

help:
	@echo "make demo      make $(VENV), install, train on the digits, print the next commands"
	@echo "make test      make $(VENV), install, check style, types and imports, run the tests (as root on Debian it"
	@echo "               installs chromium for the page tests; elsewhere they skip without one on PATH)"
	@echo "make test-all  the tests again with the slow ones and those against timm and transformers;"
	@echo "               MARK='slow or oracle' runs only the tests that make test omits"
	@echo "make test ISA=avx2   the same tests with the kernels of processors without AVX-512; TESTS=\"DIR ...\" runs some"
	@echo "make lint      style, import contract and types only"
	@echo "make format    format the code and fix the findings that ruff can fix"
	@echo "make clean     remove builds and caches ($(VENV) and runs stay)"

demo: $(STAMPS)/core
	@$(VENV)/bin/vitral train digits out=runs/demo overwrite=true
	@echo
	@echo "A trained model is in runs/demo/model. Next commands:"
	@echo "  $(VENV)/bin/vitral eval runs/demo/model                 accuracy on the test images, class by class"
	@echo "  $(VENV)/bin/vitral predict runs/demo/model IMAGE.png    the digit on your image"
	@echo "  $(VENV)/bin/vitral train --help                         every key that can be changed"
	@echo "and open runs/demo/report.html in a browser."

test: lint $(STAMPS)/browser
	@$(PYTEST) -m "not slow and not oracle" $(TESTS)

test-all: $(STAMPS)/oracle
	@$(PYTEST) --timeout 1800 $(if $(MARK),-m "$(MARK)") $(TESTS)

lint: $(STAMPS)/dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(VENV)/bin/lint-imports --no-logo
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --project pyproject.toml --pythonpath $(PY)

format: $(STAMPS)/dev
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

clean:
	rm -rf dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +

# An existing environment is reused.
$(STAMPS)/venv:
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for python in $(CANDIDATES); do \
	    if "$$python" -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "Python 3.11 or newer is required; none found among: $(CANDIDATES)" >&2; \
	    echo "Install it, or pass its path: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	    echo "$$found cannot make virtual environments: its ensurepip or venv module is missing." >&2; \
	    echo "On Debian and Ubuntu: sudo apt install python3-venv" >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv $(VENV); \
	fi
	@$(PY) -c '$(NEW_ENOUGH)' || { echo "$(VENV) holds a Python older than 3.11: remove it and try again" >&2; exit 1; }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/core: $(STAMPS)/venv $(INPUTS)
	@echo "installing into $(VENV) ..."
	@$(INSTALL) -e .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/venv $(INPUTS)
	@echo "installing into $(VENV), test tools too ..."
	@$(INSTALL) -c constraints/dev.txt -e '.[dev]'
	@touch $(STAMPS)/core $@

# Tried once; if it fails, the tests that need it skip with the reason.
$(STAMPS)/browser: $(STAMPS)/venv tools/browser.sh
	@sh tools/browser.sh
	@touch $@

$(STAMPS)/oracle: $(STAMPS)/venv $(INPUTS)
	@echo "installing into $(VENV), test tools and reference implementations too ..."
	@$(INSTALL) -c constraints/dev.txt -e '.[dev,oracle]'
	@$(INSTALL) -c constraints/dev.txt --no-deps torchattacks # pins an old release of requests, which it does not use here
	@touch $(STAMPS)/core $(STAMPS)/dev $@
