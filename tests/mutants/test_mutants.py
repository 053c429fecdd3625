"""The lists of faults fit the code: each edit applies, and the tests that have to notice it are there."""

import pytest

from . import __main__ as runner
from .own import OWN
from .survivors import SURVIVORS

MUTANTS = (*SURVIVORS, *OWN)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_edit_applies_and_its_tests_exist(mutant):
    source = (runner.ROOT / mutant.path).read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1 and mutant.old != mutant.new and mutant.tests
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (runner.ROOT / path).read_text(encoding="utf-8")


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("new, verdict", [("value = 2", "noticed"), ("value  = 1", "NOT NOTICED")])
def test_faults_are_noticed_or_not_and_the_file_is_restored(tmp_path, new, verdict):
    (tmp_path / "part.py").write_text("value = 1\n")
    (tmp_path / "test_part.py").write_text("import part\n\n\ndef test_value():\n    assert part.value == 1\n")
    mutant = runner.Mutant("name", "part.py", "value = 1", new, "wrong", ("test_part.py::test_value",))
    assert runner.judged(tmp_path, mutant) == verdict
    assert (tmp_path / "part.py").read_text() == "value = 1\n"
    assert runner.judged(tmp_path, mutant._replace(old="value = 3")) == "the edit does not apply"
