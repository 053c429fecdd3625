"""python -m llr_fast doctor."""

import pytest
import torch

import llr_fast
from llr_fast.__main__ import main
from llr_fast.commands import doctor


def test_command_shows_versions_backends_and_checks(capsys):
    main(["doctor"])
    out = capsys.readouterr().out
    assert f"llr_fast          {llr_fast.__version__}" in out and torch.__version__ in out
    for name, reason in llr_fast.backends().items():
        assert name in out and (reason or "available") in out
    rows = [line for line in out.splitlines() if line.startswith("reference ") and ": " in line]
    assert len(rows) == 14 and all(row.endswith("ok") for row in rows)
    margins = {f"l{p} margin, {method}" for p in (1, 2, "inf") for method in ("exact", "search")}
    for network in ("dense", "convolution"):
        checks = {row.split(": ")[1].split("  ")[0] for row in rows if f" {network}: " in row}
        assert checks == {*margins, "ROLL"}
    assert "WRONG" not in out and "checks passed" in out


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"llr_fast {llr_fast.__version__}\n"


def test_wrong_result_is_found(monkeypatch, capsys):
    right = llr_fast.margin

    def wrong(*args, **options):
        margin = right(*args, **options)
        margin.value.mul_(1.001)
        return margin

    monkeypatch.setattr(llr_fast, "margin", wrong)
    with pytest.raises(SystemExit, match="1"):
        doctor.run()
    assert "WRONG" in capsys.readouterr().out


def test_nan_is_wrong(monkeypatch, capsys):
    class Unknown(llr_fast.ROLLLoss):
        def forward(self, x):
            output, penalty = super().forward(x)
            return output, penalty * torch.nan

    monkeypatch.setattr(llr_fast, "ROLLLoss", Unknown)
    monkeypatch.setattr(llr_fast, "backends", lambda: {"reference": None})
    with pytest.raises(SystemExit, match="1"):
        doctor.run()
    out = capsys.readouterr().out
    assert "12 of 14 checks passed" in out and out.count("WRONG") == 2


def test_every_method_is_run(monkeypatch):
    ran, right = [], llr_fast.margin
    monkeypatch.setattr(
        llr_fast, "margin", lambda *args, **options: ran.append((args[2], options["method"])) or right(*args, **options)
    )
    list(doctor.self_check("reference"))
    assert sorted(ran) == sorted(2 * [(p, method) for p in doctor.NORMS for method in ("exact", "search")])


def test_backend_that_raises_is_found(monkeypatch, capsys):
    def broken(*args, **options):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(llr_fast, "margin", broken)
    monkeypatch.setattr(llr_fast, "backends", lambda: {"reference": None, "triton": "no device"})
    with pytest.raises(SystemExit, match="1"):
        doctor.run()
    printed = capsys.readouterr()
    assert "2 of 14 checks passed" in printed.out and "no device" in printed.out and "no such kernel" in printed.err


def test_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    assert ("no-such-package", "not installed") in doctor.versions()


def test_local_versions_are_shown(monkeypatch):
    """Packages of builds for CUDA do not always name them."""
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    monkeypatch.setattr(doctor.metadata, "version", lambda package: "2.11.0")
    assert ("torch", "2.11.0+cu130") in doctor.versions()
