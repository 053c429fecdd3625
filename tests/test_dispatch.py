"""Which implementation runs, and what happens where a backend is missing or broken."""

import os
import subprocess
import sys
import threading

import operators as ops
import pytest
import torch
from ops import operator_cases as oc

from llr_fast.dispatch import backend, backends, implementation, selected, set_backend
from llr_fast.ops.masked_linear import reference as masked_linear_reference
from llr_fast.ops.tangent_activation import reference

CPU = torch.device("cpu")
# `llr_fast.backend` is the context manager, which hides the module of that name.
backends_module = sys.modules["llr_fast.dispatch"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(backends_module, "_process_choice", None)
    monkeypatch.delenv("LLR_FAST_BACKEND", raising=False)


@pytest.fixture
def extension(monkeypatch, tmp_path):
    """Makes the library look for its C++ extension in an empty folder."""
    monkeypatch.setattr(backends_module, "__file__", str(tmp_path / "dispatch.py"))
    _forget()
    yield tmp_path
    monkeypatch.undo()
    _forget()


def _forget():
    for name in ("_load_native", "_native_op", "_warn_if_not_built"):
        function = getattr(backends_module, name)
        function.cache_clear()


def test_the_innermost_choice_wins(monkeypatch):
    assert selected() == "auto"
    set_backend("reference")
    assert selected() == "reference"
    with backend("auto"):
        assert selected() == "auto"
        with backend("reference"):
            assert selected() == "reference"
        assert selected() == "auto"
    assert selected() == "reference"


def test_the_environment_is_read_at_first_use(monkeypatch):
    monkeypatch.setenv("LLR_FAST_BACKEND", "reference")
    assert selected() == "reference"
    monkeypatch.setattr(backends_module, "_process_choice", None)
    monkeypatch.setenv("LLR_FAST_BACKEND", "fastest")
    with pytest.raises(ValueError, match=r"LLR_FAST_BACKEND: expected one of auto, .*got 'fastest'"):
        selected()


def test_a_block_does_not_reach_other_threads():
    seen = []
    with backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(selected()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


@pytest.mark.filterwarnings("ignore:.*not built")
def test_which_implementation_runs(monkeypatch, extension):
    """Equal results cannot tell a fallback from the kernel that was asked for."""
    ran = []
    plain = reference.tangent_activation
    plain_backward = reference.tangent_activation_backward
    monkeypatch.setattr(reference, "tangent_activation", lambda *a: ran.append("forward") or plain(*a))
    monkeypatch.setattr(
        reference, "tangent_activation_backward", lambda *a: ran.append("backward") or plain_backward(*a)
    )
    tangents, slope = oc.tangent_inputs((3, 4, 4, 5))
    ops.tangent_activation(tangents.requires_grad_(), slope, "sum_abs")[0].sum().backward()
    assert ran == ["forward", "backward"]


def test_backward_uses_the_backend_of_forward(monkeypatch):
    seen = []
    plain = reference.tangent_activation_backward
    monkeypatch.setattr(reference, "tangent_activation_backward", lambda *a: seen.append(selected()) or plain(*a))
    tangents, slope = oc.tangent_inputs((3, 4, 4, 5))
    with backend("reference"):
        out, _ = ops.tangent_activation(tangents.requires_grad_(), slope, "sum_abs")
    out.sum().backward()
    assert seen == ["reference"]


def test_without_the_extension_the_reference_runs(extension):
    with pytest.warns(RuntimeWarning, match=r"not built.*LLR_FAST_BUILD_EXT=1 pip install") as warned:
        assert implementation("tangent_activation", CPU) is reference.tangent_activation
        assert implementation("masked_linear", CPU) is masked_linear_reference.masked_linear
    assert len(warned) == 1  # in the whole process
    assert "not built" in backends()["native"]
    with pytest.raises(RuntimeError, match=r"backend 'native' cannot run: .*not built"):
        set_backend("native")


def test_on_a_gpu_the_kernels_run_but_where_a_library_is_faster():
    launchers = pytest.importorskip("llr_fast.ops.masked_linear.triton")
    cuda, of_library = torch.device("cuda"), masked_linear_reference
    assert implementation("masked_linear", cuda, torch.bfloat16) is launchers.launch_masked_linear
    assert implementation("masked_linear", cuda, torch.float32) is of_library.masked_linear
    assert implementation("masked_linear_backward", cuda, torch.float32) is of_library.masked_linear_backward


def test_a_broken_extension_is_an_error(extension):
    (extension / "_C.abi3.so").write_bytes(b"not a library")
    with pytest.raises(RuntimeError, match="does not load"):
        implementation("tangent_activation", CPU)
    assert "does not load" in backends()["native"]
    with backend("reference"):
        assert implementation("tangent_activation", CPU) is reference.tangent_activation


def test_a_backend_is_not_forced_on_tensors_it_cannot_take(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends_module, "_process_choice", "triton")
    with pytest.raises(RuntimeError, match="tangent_activation: backend 'triton' takes CUDA tensors, got cpu"):
        ops.tangent_activation(*oc.tangent_inputs((3, 4, 4, 5)), "sum_abs")
    monkeypatch.setattr(backends_module, "_process_choice", "native")
    with pytest.raises(RuntimeError, match="tangent_activation: backend 'native' has no kernel for it on meta"):
        implementation("tangent_activation", torch.device("meta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_triton_without_a_device(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"backend 'triton' cannot run: (there is no CUDA device|triton is not)"):
        set_backend("triton")


def test_import_neither_loads_triton_nor_looks_for_backends():
    script = (
        "import sys, torch\n"
        "loaded = 'triton' in sys.modules\n"
        "import llr_fast.ops\n"
        "b = sys.modules['llr_fast.dispatch']\n"
        "assert ('triton' in sys.modules) == loaded\n"
        "assert b._load_native.cache_info().currsize == 0 and b._process_choice is None\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    environment = {**os.environ, "LLR_FAST_BACKEND": "no such backend"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
