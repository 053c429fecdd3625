PYTHON ?= python3
BIN := .venv/bin
TORCH := .venv/.torch
INSTALLED = .venv/.installed-$(LLR_FAST_BUILD_EXT)
LINUX := $(filter Linux,$(shell uname -s))
CSRC := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.inc)
SLOW := the C++ kernels were not built, so CPU runs are slower; LLR_FAST_BUILD_EXT=1 make test shows why
INTERPRETED := $(and $(LINUX),$(wildcard tests/kernels/test_*.py))
# The oldest Triton that is allowed has a folder of its own, with the last NumPy whose numbers its interpreter takes.
OLDEST := $(shell sed -n 's/^triton = ."triton>=\([0-9.]*\);.*/\1/p' pyproject.toml)
OLDEST_FOLDER := .triton/$(OLDEST)

# One process for each core: tests are too small to gain from threads.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto
# Results are written where git ignores them; benches/results holds those that the README shows.
BENCH := mkdir -p .benchmarks && $(BIN)/pytest benches --benchmark-enable --benchmark-json=.benchmarks

export LLR_FAST_BUILD_EXT ?= auto

N ?= 2000

.PHONY: demo gallery docs test test-oldest-triton fuzz mutants check bench test-gpu bench-gpu clean

demo: $(INSTALLED)
	$(BIN)/python -m llr_fast demo

gallery: $(INSTALLED)
	$(BIN)/python -m benches.gallery

# The site of README, docs/ and docstrings, which are read and not run: site/index.html. Broken links fail the build.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html"

# The Triton interpreter is chosen when kernels are imported, so its tests need a process of their own.
test: $(INSTALLED)
	$(PARALLEL) llr_fast tests -m "not gpu"
	$(if $(INTERPRETED),TRITON_INTERPRET=1 $(PARALLEL) tests/kernels -m "not gpu")

# Compiled and interpreted by the oldest Triton too, whose rules and registers are others; three minutes of its own.
test-oldest-triton: $(INSTALLED)
	@test -d $(OLDEST_FOLDER) || { $(BIN)/pip install --quiet --no-deps --retries 1 --target $(OLDEST_FOLDER).part \
		triton==$(OLDEST) "numpy<2.4" 2>/dev/null && mv $(OLDEST_FOLDER).part $(OLDEST_FOLDER); } || true
	@if test -d $(OLDEST_FOLDER); then export PYTHONPATH=$(OLDEST_FOLDER); \
		$(PARALLEL) tests/compiled -k "not test_every or (sm_90 and not float64)" && \
		TRITON_INTERPRET=1 $(PARALLEL) tests/kernels/test_triton.py tests/kernels/test_roll_activation.py -m "not gpu"; \
	else echo "skipped: the kernels under Triton $(OLDEST), which is neither in $(OLDEST_FOLDER) nor to be downloaded"; fi

# Random networks against the oracle: make fuzz N=2000, make fuzz MINUTES=30 START=5000, make fuzz SEED=123.
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -W ignore -m fuzz --count $(N) $(if $(START),--start $(START)) \
		$(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

# Plants small faults one at a time; each has to fail the tests that its list names: make mutants, make mutants ONLY=sketch.
mutants: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m mutants $(if $(ONLY),--only $(ONLY))

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(if $(CSRC),$(BIN)/clang-format --dry-run -Werror $(CSRC))

bench: $(INSTALLED)
	$(BENCH)/cpu.json -m "not gpu"

# An interpreter that is named is used as it is, and nothing is installed or built: make test-gpu PYTHON=python, or BIN=.
NAMED := $(if $(findstring command,$(origin PYTHON)),$(PYTHON),$(if $(findstring command,$(origin BIN)),$(BIN)/python))
GPU_PYTHON = $(or $(NAMED),$(BIN)/python)
WORKERS = import importlib.util as u; print('-n auto --maxprocesses 8' if u.find_spec('xdist') else '')

test-gpu: $(if $(NAMED),,$(INSTALLED))
	OMP_NUM_THREADS=1 $(GPU_PYTHON) -m pytest tests -m gpu $$($(GPU_PYTHON) -c "$(WORKERS)")

bench-gpu: $(if $(NAMED),,$(INSTALLED))
	$(GPU_PYTHON) -m benches.gpu .benchmarks/gpu.json

clean:
	rm -rf .venv build dist site *.egg-info llr_fast/_C*.so margins.png
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .triton
	find . -name __pycache__ -prune -exec rm -rf {} +

# The exact version, because an open range may fetch several GB of CUDA libraries where a CPU build is at hand.
# A CUDA build brings the Triton that fits it; a CPU build brings none.
$(TORCH):
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "setuptools>=77" ninja torch==2.13.0
	$(if $(LINUX),$(BIN)/pip show --quiet triton 2>/dev/null || $(BIN)/pip install --quiet triton==3.8.0)
	touch $@

# Without isolation the kernels compile against the torch above. An old binary goes first: a failed build must not leave it.
$(INSTALLED): $(TORCH) pyproject.toml setup.py $(CSRC)
	rm -f .venv/.installed-* llr_fast/_C*.so
	$(BIN)/pip install --quiet --no-build-isolation -e ".[dev]"
	@test -z "$(CSRC)" || ls llr_fast/_C*.so >/dev/null 2>&1 || echo "llr_fast: $(SLOW)"
	touch $@

# What the site takes is read from pyproject.toml, so that neither torch nor a compiler is needed for it.
.venv/.docs: pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	sed -n 's/^docs = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",' | xargs $(BIN)/pip install --quiet
	touch $@
