"""The table of `make mutants` follows the code, between the times that it is run."""

from tests.mutants import MUTANTS, ROOT


def test_each_mutant_changes_text_that_is_there_once_and_names_a_test_that_is_there():
    for mutant in MUTANTS:
        assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1, mutant.name
        file, *test = mutant.test.split("[")[0].split("::")
        code = (ROOT / file).read_text(encoding="utf-8")
        assert all(f"def {name}(" in code or f"class {name}" in code for name in test), mutant.name
