# make demo   fit the built-in data set, print its figures, write demo/report.html
# make test   lint, type check, every test and doctest
# make sanitize   the tests of the kernels with GCC's address and undefined-behaviour sanitizers
# Each works as the only command on a fresh machine: the virtual environment is made here.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test sanitize lint bench clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/quarflow demo -o demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Without optimisation too: what relies on it (fused products and sums, say) shows there. Python
# itself is not made for the sanitizers, so they come first, and its leaks are not looked at.
SANITIZERS = $(foreach name,asan ubsan,$(shell $(or $(CXX),g++) -print-file-name=lib$(name).so))
sanitize: $(STAMP)
	set -e; for level in -O0 -O1 -O3; do \
	    echo "sanitizers, $$level"; \
	    QUARFLOW_CXXFLAGS="$$level -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
	    LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -n 0 -p no:cacheprovider -s tests/test_backends.py tests/test_kernels.py; \
	done

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

# The development extra with the libraries that the benchmarks compare with.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'

clean:
	rm -rf $(VENV) demo build dist
