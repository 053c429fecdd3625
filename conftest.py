"""Which modules are searched for doctests, and when benches run. Kernel files need Triton, if that is there."""

import importlib.util

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["llr_fast/ops/*/triton.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Benches run where they are asked for. That is no option in pyproject.toml: not every machine has the plugin."""
    if not getattr(config.option, "benchmark_enable", True):
        config.option.benchmark_disable = True
