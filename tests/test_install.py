"""What a build contains and what it needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def build(folder, **environment):
    for name in ("llr_fast", "csrc"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "lib"]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


def test_every_module_is_installed(tmp_path):
    result = build(tmp_path, LLR_FAST_BUILD_EXT="0")
    assert result.returncode == 0, result.stderr
    expected = {path.relative_to(tmp_path) for path in (tmp_path / "llr_fast").rglob("*.py")}
    expected.add(Path("llr_fast/py.typed"))
    assert {path.relative_to(tmp_path / "lib") for path in (tmp_path / "lib").rglob("*.*")} == expected


@pytest.mark.skipif(not list(ROOT.glob("csrc/*/*.cpp")), reason="an installed package has no C++ sources")
@pytest.mark.parametrize("mode, succeeds", [("auto", True), ("1", False)])
def test_build_without_a_compiler(tmp_path, mode, succeeds):
    result = build(tmp_path, LLR_FAST_BUILD_EXT=mode, CXX="no-such-compiler")
    assert (result.returncode == 0) == succeeds
    assert "no-such-compiler does not compile C++20" in result.stderr
    assert not list(tmp_path.glob("lib/**/*.so"))


def test_unknown_build_mode_is_refused(tmp_path):
    result = build(tmp_path, LLR_FAST_BUILD_EXT="yes")
    assert result.returncode != 0
    assert "LLR_FAST_BUILD_EXT must be auto, 0 or 1, got 'yes'" in result.stderr


@pytest.fixture
def script():
    """The names of setup.py, which is not run."""
    names = {}
    exec((ROOT / "setup.py").read_text().replace("setup(**kernels())", ""), names)
    return names


def test_build_finds_the_torch_of_an_interpreter_that_hides_it(script, monkeypatch):
    """As frontends isolate a build: by variables, which the question to the interpreter leaves out."""
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    found = script["paths_to_torch"](sys.executable)
    assert str(Path(torch.__file__).parents[1]) in found and "/nowhere" not in found


def test_build_looks_on_the_path_and_beside_the_sources(script, monkeypatch, tmp_path):
    """As other frontends isolate it: in an environment of its own."""
    folders = [tmp_path / "first", tmp_path / ".venv" / "bin"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "python").write_text("#!/bin/sh\necho /elsewhere\n")
        (folder / "python").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'none'}{os.pathsep}{folders[0]}")
    assert list(script["interpreters"]()) == [sys.executable, *(str(folder / "python") for folder in folders)]
    assert script["paths_to_torch"](str(folders[0] / "python")) == ["/elsewhere"]
    assert script["paths_to_torch"]("no-such-interpreter") == []


def test_the_compilers_own_words_are_shown(script, monkeypatch, tmp_path):
    (tmp_path / "c++").write_text("#!/bin/sh\necho 'error: too old' >&2\nexit 1\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    with pytest.raises(RuntimeError, match=r"does not compile C\+\+20: error: too old"):
        script["probe_compiler"]()


def test_import_needs_no_extra():
    missing = ("matplotlib", "sklearn", "triton")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import llr_fast"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
