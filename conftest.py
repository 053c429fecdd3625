"""Which modules are searched for doctests: kernel files import Triton, which not every platform has."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["llr_fast/ops/*/triton.py"]
